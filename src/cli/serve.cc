// pith serve: the model over HTTP, to the clients of OpenAI, Anthropic, Ollama and llama-server.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "base/text.h"
#include "cli/command.h"
#include "cli/sampler_flags.h"
#include "cli/store_flags.h"
#include "cli/terminal.h"
#include "server/scheduler.h"
#include "server/server.h"

namespace pith::cli {
namespace {

constexpr const char* kExamples = R"(
One budget (--kv-budget) holds the caches of all requests and the prefixes that are kept for later ones; -c is the context
of each request. SIGTERM and Ctrl-C finish what runs and refuse what is new; a second one ends the program at once.
Variables of the environment such as LLAMA_ARG_PORT stand for flags that are not given. docs/serving.md has the endpoints.

Examples:
  pith serve
  pith serve -m model.gguf -c 32768 --kv-budget 2GiB -np 8 --port 8080
  pith serve --store ~/.cache/pith/store,ram=1GiB,ssd=20GiB    # prompts that begin alike start at once, also after a restart
  curl localhost:8080/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hello"}]}'
)";

constexpr int kDefaultParallel = 4;
// Without --kv-budget: all contexts in full, but not more than this.
constexpr size_t kDefaultServerBytes = size_t{1} << 30;

struct ServeFlags {
  ModelFlags model;
  CacheFlags cache;
  SamplerFlags sampler;
  StoreFlags store;
  OutputFlags output;
  std::string template_file;
  std::string host = "127.0.0.1";
  int port = 8080;
  std::string alias;
  std::vector<std::string> api_keys;
  std::string api_key_file;
  std::string slot_save_path;
  double prompt_share = 0;
  int queue = 256;
  int max_retained = 64;
  bool deterministic_reuse = false;
  int connections = 1024;
  int http_threads = 2;
  int timeout = 30;
  int drain_seconds = 600;
  bool ignored = false;

  int parallel() const { return cache.parallel > 0 ? cache.parallel : kDefaultParallel; }
};

Status Check(const ServeFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.model.Check());
  PITH_RETURN_IF_ERROR(flags.cache.Check());
  PITH_RETURN_IF_ERROR(flags.sampler.Check());
  PITH_RETURN_IF_ERROR(flags.store.Check(flags.cache.recipe));
  PITH_ASSIGN_OR_RETURN(const Recipe recipe, ParseRecipe(flags.cache.recipe));
  if (NeedsWholePrompt(recipe) && flags.cache.compress != "after") {
    return InvalidArgument(
        "a server reads prompts beside others' answers: choose a --recipe that evicts while it reads");
  }
  if (flags.prompt_share < 0 || flags.prompt_share > 1)
    return InvalidArgument("--prompt-share takes a share above 0, up to 1");
  std::error_code error;
  if (!flags.slot_save_path.empty() && !std::filesystem::is_directory(flags.slot_save_path, error)) {
    return InvalidArgument(fmt::format("--slot-save-path names {}, which is no folder", flags.slot_save_path));
  }
  return {};
}

// Commas and lines separate keys.
Result<std::vector<std::string>> ApiKeys(const ServeFlags& flags) {
  std::vector<std::string> texts = flags.api_keys;
  if (!flags.api_key_file.empty()) {
    PITH_ASSIGN_OR_RETURN(std::string text, ReadFile(flags.api_key_file));
    texts.push_back(std::move(text));
  }
  std::vector<std::string> keys;
  for (const std::string& text : texts) {
    for (size_t from = 0; from < text.size();) {
      const size_t end = std::min(text.find_first_of(",\r\n", from), text.size());
      if (end > from) keys.push_back(text.substr(from, end - from));
      from = end + 1;
    }
  }
  if (keys.empty() && !texts.empty()) return InvalidArgument("the API key is empty");
  return keys;
}

Result<EngineOptions> MakeServerEngine(const ServeFlags& flags, const ModelInfo& info) {
  CacheFlags cache = flags.cache;
  cache.parallel = 0;  // not one conversation here
  PITH_ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(cache, flags.model, info));
  const auto parallel = static_cast<size_t>(flags.parallel());
  const size_t full = FullCacheBytes(info, options.num_ctx) * parallel;
  if (flags.cache.budget.empty()) {
    options.budget_bytes = full <= kDefaultServerBytes ? 0 : kDefaultServerBytes;
  } else {
    PITH_ASSIGN_OR_RETURN(const SizeOrShare budget, ParseSizeOrShare(flags.cache.budget));
    if (budget.share > 0)
      options.budget_bytes = std::max<size_t>(static_cast<size_t>(budget.share * static_cast<double>(full)), 1);
  }
  return options;
}

server::ServedModel MakeServed(const ServeFlags& flags, const std::shared_ptr<HostModel>& model,
                               const EngineOptions& options, const SamplerOptions& sampling) {
  server::ServedModel served;
  served.info = model->info();
  served.id = flags.alias.empty() ? std::filesystem::path(served.info.path).stem().string() : flags.alias;
  served.text = std::make_shared<HostText>(model);
  served.chat_template = model->chat_template();
  served.bos = model->bos_text();
  served.eos = model->eos_text();
  served.num_ctx = options.num_ctx;
  served.num_slots = flags.parallel();
  served.sampling = sampling;
  served.recipe = options.recipe;
  served.created = server::UnixTime();
  served.parse_budget = [full =
                             FullCacheBytes(served.info, options.num_ctx)](const std::string& text) -> Result<size_t> {
    PITH_ASSIGN_OR_RETURN(const SizeOrShare budget, ParseSizeOrShare(text));
    return budget.share > 0 ? std::max<size_t>(static_cast<size_t>(budget.share * static_cast<double>(full)), 1)
                            : budget.bytes;
  };
  return served;
}

server::ServerOptions MakeServerOptions(const ServeFlags& flags, std::vector<std::string> keys) {
  server::ServerOptions options;
  options.http.host = flags.host;
  options.http.port = flags.port;
  options.http.num_workers = flags.http_threads;
  options.http.limits.connections = flags.connections;
  options.http.limits.write_seconds = flags.timeout;
  options.http.limits.body_seconds = 2.0 * flags.timeout;
  options.api_keys = std::move(keys);
  options.saves_slots = !flags.slot_save_path.empty();
  return options;
}

Result<int> Serve(ServeFlags& flags) {
  PITH_ASSIGN_OR_RETURN(std::vector<std::string> keys, ApiKeys(flags));
  PromptFlags text;
  text.template_file = flags.template_file;
  PITH_RETURN_IF_ERROR(text.ReadFiles(flags.model));
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  PITH_ASSIGN_OR_RETURN(EngineOptions options, MakeServerEngine(flags, model->info()));
  PITH_ASSIGN_OR_RETURN(const SamplerOptions sampling, flags.sampler.Make(*model, options.num_ctx));
  server::SchedulerOptions scheduling;
  scheduling.max_running = flags.parallel();
  scheduling.max_waiting = flags.queue;
  scheduling.max_retained = flags.max_retained;
  if (flags.prompt_share > 0) scheduling.prompt_share = flags.prompt_share;
  scheduling.deterministic_reuse = flags.deterministic_reuse;
  scheduling.save_folder = flags.slot_save_path;
  PITH_ASSIGN_OR_RETURN(scheduling.store, flags.store.Open(*model));
  server::ReserveSequences(scheduling, &options);
  if (flags.store.places()) {
    options.resting_sequences += kPlacerSequences;
    scheduling.store->Warm();
  }
  PITH_ASSIGN_OR_RETURN(std::shared_ptr<Engine> engine, Engine::Create(model, options));
  server::ServedModel served = MakeServed(flags, model, options, sampling);
  PITH_ASSIGN_OR_RETURN(std::shared_ptr<server::Scheduler> scheduler,
                        server::Scheduler::Create(engine, served.text, scheduling));
  PITH_ASSIGN_OR_RETURN(
      const std::unique_ptr<server::Server> serving,
      server::Server::Create(MakeServerOptions(flags, std::move(keys)), std::move(served), scheduler));
  const bool is_v6 = flags.host.find(':') != std::string::npos;
  fmt::print("pith serves {} at http://{}{}{}:{}\n", model->info().description, is_v6 ? "[" : "", flags.host,
             is_v6 ? "]" : "", serving->port());
  std::fflush(stdout);
  while (!Interrupted()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  serving->Drain(flags.drain_seconds);
  return kExitOk;
}

void AddServerFlags(CLI::App& command, ServeFlags& flags) {
  AddOption(command, "--host", flags.host, "Address to listen at (default 127.0.0.1: this machine alone)", "ADDRESS");
  AddNumber(command, "--port", flags.port, 0, 65535, "Port (default 8080; 0: any that is free)", "N");
  AddOption(command, "-a,--alias", flags.alias, "Name of the model in answers (default: the file's)", "NAME");
  AddOption(command, "--api-key", flags.api_keys,
            "Key that clients must send, for everything but /health; several between commas", "KEY");
  AddOption(command, "--api-key-file", flags.api_key_file, "The same from a file, one a line", "FILE");
  AddOption(command, "--slot-save-path", flags.slot_save_path, "Folder of saved slots (default: none are saved)",
            "FOLDER");
  AddOption(command, "--prompt-share", flags.prompt_share,
            "Share that prompts have while others decode: 1 reads as fast as it goes, less keeps the gaps between "
            "tokens short",
            "SHARE");
  AddNumber(command, "--queue", flags.queue, 0, 100000, "Requests that may wait; more get 429 (default 256)", "N");
  AddNumber(command, "--max-retained", flags.max_retained, 0, 4096,
            "Prefixes kept for later requests, inside the budget (default 64)", "N");
  AddFlag(command, "--deterministic-reuse", flags.deterministic_reuse,
          "The same text with and without a kept prefix, bit for bit (slower)");
  AddNumber(command, "--connections", flags.connections, 1, 1000000, "Connections at once (default 1024)", "N");
  AddNumber(command, "--threads-http", flags.http_threads, 1, 256, "Threads for JSON, templates and tokens (default 2)",
            "N");
  AddNumber(command, "--timeout", flags.timeout, 1, 86400,
            "-to: seconds after which a client that takes or sends nothing is dropped (default 30)", "SECONDS");
  AddNumber(command, "--drain", flags.drain_seconds, 0, 86400,
            "Seconds that what runs may take after SIGTERM (default 600)", "SECONDS");
  AddOption(command, "--chat-template-file", flags.template_file, "Chat template from a file, as --chat-template",
            "FILE");
  for (const char* name : {"--metrics", "--slots", "--props", "--jinja", "--cont-batching", "--no-webui"}) {
    Hide(AddFlag(command, name, flags.ignored, ""));  // llama-server's: always so here
  }
}

// llama-server's names, where the meaning is the same.
void AddVariables(CLI::App& command) {
  constexpr std::pair<const char*, const char*> kVariables[] = {
      {"--model", "LLAMA_ARG_MODEL"},
      {"--threads", "LLAMA_ARG_THREADS"},
      {"--ctx-size", "LLAMA_ARG_CTX_SIZE"},
      {"--parallel", "LLAMA_ARG_N_PARALLEL"},
      {"--host", "LLAMA_ARG_HOST"},
      {"--port", "LLAMA_ARG_PORT"},
      {"--alias", "LLAMA_ARG_ALIAS"},
      {"--api-key", "LLAMA_API_KEY"},
      {"--cache-type-k", "LLAMA_ARG_CACHE_TYPE_K"},
      {"--cache-type-v", "LLAMA_ARG_CACHE_TYPE_V"},
      {"--ubatch-size", "LLAMA_ARG_UBATCH"},
      {"--gpu-layers", "LLAMA_ARG_N_GPU_LAYERS"},
      {"--threads-http", "LLAMA_ARG_THREADS_HTTP"},
      {"--timeout", "LLAMA_ARG_TIMEOUT"},
      {"--chat-template", "LLAMA_ARG_CHAT_TEMPLATE"},
      {"--chat-template-file", "LLAMA_ARG_CHAT_TEMPLATE_FILE"},
      {"--api-key-file", "LLAMA_ARG_API_KEY_FILE"},
      {"--slot-save-path", "LLAMA_ARG_SLOT_SAVE_PATH"},
  };
  for (const auto& [option, variable] : kVariables) FromEnvironment(command, option, variable);
}

}  // namespace

void AddServe(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<ServeFlags>();
  CLI::App* command = AddCommand(app, "serve", "Serve a model over HTTP to many clients, under one budget", kExamples);
  AddServerFlags(*command, *flags);
  AddModelFlags(*command, flags->model);
  AddCacheFlags(*command, flags->cache);
  AddStoreFlag(*command, flags->store);
  AddSamplerFlags(*command, flags->sampler);
  AddFlag(*command, "--progress", flags->output.progress, "Show progress even where standard error is no terminal");
  AddVariables(*command);
  OnCommand(*command, [flags, &chosen] {
    chosen.check = [flags] { return Check(*flags); };
    chosen.run = [flags] { return Serve(*flags); };
  });
}

}  // namespace pith::cli
