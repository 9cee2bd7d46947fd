// pith serve: the model over HTTP, to the clients of OpenAI, Anthropic, Ollama and llama-server.
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <cctype>
#include <chrono>
#include <filesystem>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>

#include "base/text.h"
#include "cli/auto_recipe.h"
#include "cli/command.h"
#include "cli/sampler_flags.h"
#include "cli/store_flags.h"
#include "cli/terminal.h"
#include "server/catalog.h"
#include "server/embedding_scheduler.h"
#include "server/scheduler.h"
#include "server/server.h"

namespace pith::cli {
namespace {

constexpr const char* kServeExamples = R"(
One budget (--kv-budget) holds the caches of all requests and the prefixes that are kept for later ones; -c is the context
of each request. SIGTERM and Ctrl-C finish what runs and refuse what is new; a second one ends the program at once.
Variables of the environment such as LLAMA_ARG_PORT stand for flags that are not given. docs/serving.md has the endpoints.

Examples:
  pith serve
  pith serve -m model.gguf -c 32768 --kv-budget 2GiB -np 8 --port 8080
  pith serve --models ~/models --models-max 2 --keep-alive 600
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
  std::string models;
  int models_max = 1;
  int keep_alive = -1;
  std::string embedding_model;
  std::vector<std::string> api_keys;
  std::string api_key_file;
  std::string slot_save_path;
  double prompt_share = 0;
  int queue = 256;
  int overtaking = 60;
  int max_retained = 64;
  int cache_reuse = 0;
  int kept_responses = 1000;
  std::string kept_responses_bytes = "64MiB";
  double keep = 0;  // 0: not given
  bool deterministic_reuse = false;
  int connections = 1024;
  int http_threads = 2;
  int timeout = 30, ping_seconds = 30;
  int drain_seconds = 600;

  int parallel() const { return cache.parallel > 0 ? cache.parallel : kDefaultParallel; }
};

Status CheckRecipe(const CacheFlags& cache, const StoreFlags& store) {
  PITH_RETURN_IF_ERROR(store.Check(cache.recipe));
  PITH_ASSIGN_OR_RETURN(const Recipe recipe, ParseRecipe(cache.recipe));
  if (!NeedsWholePrompt(recipe) || cache.compress != "block") return {};
  return InvalidArgument(fmt::format("{} works once a prompt is whole: leave --compress block out", cache.recipe));
}

Status CheckServe(const ServeFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.model.Check());
  PITH_RETURN_IF_ERROR(flags.cache.Check());
  PITH_RETURN_IF_ERROR(flags.sampler.Check());
  if (!IsAutoRecipe(flags.cache.recipe)) PITH_RETURN_IF_ERROR(CheckRecipe(flags.cache, flags.store));
  if (flags.prompt_share < 0 || flags.prompt_share > 1)
    return InvalidArgument("--prompt-share takes a share above 0, up to 1");
  if (!ParseSize(flags.kept_responses_bytes))
    return InvalidArgument("--kept-responses-bytes takes a size such as 64MiB");
  if (flags.keep < 0 || flags.keep > 1) return InvalidArgument("--keep takes a share between 0 and 1");
  std::error_code error;
  if (!flags.slot_save_path.empty() && !std::filesystem::is_directory(flags.slot_save_path, error)) {
    return InvalidArgument(fmt::format("--slot-save-path names {}, which is no folder", flags.slot_save_path));
  }
  if (flags.models.empty()) return {};
  if (!flags.model.path.empty()) return InvalidArgument("--models serves the files of a folder; leave -m out");
  if (!flags.alias.empty())
    return InvalidArgument("models of --models have the names of their files; leave --alias out");
  if (!std::filesystem::is_directory(flags.models, error)) {
    return InvalidArgument(fmt::format("--models names {}, which is no folder", flags.models));
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

// The budget of one of `share` models that may be loaded at once.
Result<EngineOptions> MakeServerEngine(const ServeFlags& flags, const ModelInfo& info, size_t share) {
  CacheFlags cache = flags.cache;
  cache.parallel = 0;  // not one conversation here
  const auto parallel = static_cast<size_t>(flags.parallel());
  const int num_ctx = ContextOf(info, cache.ctx);
  const size_t full = FullCacheBytes(info, num_ctx) * parallel;
  size_t budget_bytes = full <= kDefaultServerBytes / share ? 0 : kDefaultServerBytes / share;
  if (!flags.cache.budget.empty()) {
    PITH_ASSIGN_OR_RETURN(const SizeOrShare budget, ParseSizeOrShare(flags.cache.budget));
    const size_t bytes =
        budget.share > 0 ? static_cast<size_t>(budget.share * static_cast<double>(full)) : budget.bytes;
    budget_bytes = std::max<size_t>(bytes / share, 1);
  }
  PITH_RETURN_IF_ERROR(
      SettleRecipe(cache, info, num_ctx, budget_bytes == 0 ? 0 : std::max<size_t>(budget_bytes / parallel, 1)));
  PITH_RETURN_IF_ERROR(CheckRecipe(cache, flags.store));
  PITH_ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(cache, flags.model, info));
  options.budget_bytes = budget_bytes;
  return options;
}

server::ServedModel MakeServed(const std::shared_ptr<HostModel>& model, std::string id) {
  server::ServedModel served;
  served.info = model->info();
  served.id = id.empty() ? std::filesystem::path(served.info.path).stem().string() : std::move(id);
  served.text = std::make_shared<HostText>(model);
  served.most_token_bytes = model->MostBytesOfToken();
  served.chat_template = model->chat_template();
  served.bos = model->bos_text();
  served.eos = model->eos_text();
  served.fim = FimTokensOf(*model);
  served.created = server::UnixTime();
  return served;
}

Result<std::unique_ptr<server::ServerContext>> MakeChatContext(const ServeFlags& flags,
                                                               const std::shared_ptr<HostModel>& model, std::string id,
                                                               size_t share, std::shared_ptr<store::Store> store) {
  PITH_ASSIGN_OR_RETURN(EngineOptions options, MakeServerEngine(flags, model->info(), share));
  auto context = std::make_unique<server::ServerContext>();
  server::ServedModel& served = context->model = MakeServed(model, std::move(id));
  SamplerFlags sampler = flags.sampler;
  PITH_ASSIGN_OR_RETURN(served.sampling, sampler.Make(*model, options.num_ctx));
  served.num_ctx = options.num_ctx;
  served.num_slots = flags.parallel();
  served.ping_seconds = flags.ping_seconds;
  served.recipe = options.recipe;
  served.topics = std::make_shared<server::TopicMemory>(model, flags.model.num_threads());
  served.parse_budget = [full = FullCacheBytes(served.info, options.num_ctx)](const std::string& text)
      -> Result<size_t> {
    PITH_ASSIGN_OR_RETURN(const SizeOrShare budget, ParseSizeOrShare(text));
    return budget.share > 0 ? std::max<size_t>(static_cast<size_t>(budget.share * static_cast<double>(full)), 1)
                            : budget.bytes;
  };
  server::SchedulerOptions scheduling;
  scheduling.max_running = flags.parallel();
  scheduling.max_waiting = flags.queue;
  scheduling.overtaking_seconds = flags.overtaking;
  scheduling.max_retained = flags.max_retained;
  scheduling.cache_reuse = flags.cache_reuse;
  if (flags.prompt_share > 0) scheduling.prompt_share = flags.prompt_share;
  scheduling.compress_after = flags.cache.compress == "after";
  if (flags.keep > 0) scheduling.keep = flags.keep;
  scheduling.deterministic_reuse = flags.deterministic_reuse;
  scheduling.save_folder = flags.slot_save_path;
  PITH_ASSIGN_OR_RETURN(scheduling.store, flags.store.Use(std::move(store), *model));
  server::ReserveSequences(scheduling, &options);
  if (flags.store.places()) {
    options.resting_sequences += kPlacerSequences;
    scheduling.store->Warm();
  }
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<Engine> engine, Engine::Create(model, options));
  PITH_ASSIGN_OR_RETURN(context->scheduler, server::Scheduler::Create(engine, served.text, scheduling));
  context->saves_slots = !flags.slot_save_path.empty();
  return context;
}

// overrides: of this file.
Result<std::unique_ptr<server::ServerContext>> LoadEmbeddings(const ServeFlags& flags, const std::string& path,
                                                              std::string id, ModelOverrides overrides) {
  HostModelOptions options;
  options.overrides = std::move(overrides);
  options.num_threads = flags.model.num_threads();
  options.use = ModelUse::kEmbeddings;
  options.progress = [](float) { return !Interrupted(); };
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, HostModel::Load(path, options));
  auto context = std::make_unique<server::ServerContext>();
  context->model = MakeServed(model, std::move(id));
  context->model.generates = false;
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<server::EmbeddingScheduler> scheduler,
                        server::EmbeddingScheduler::Create(model, options.num_threads, flags.queue));
  context->model.num_ctx = scheduler->num_ctx();
  context->scheduler = std::move(scheduler);
  return context;
}

// One of --models, whether it generates text or gives embeddings alone.
Result<std::unique_ptr<server::ServerContext>> LoadFile(ServeFlags flags, const server::ModelFile& file,
                                                        std::shared_ptr<store::Store> store) {
  flags.model.path = file.path;
  flags.output.progress = false;
  const Result<std::shared_ptr<HostModel>> model = LoadModel(flags.model, flags.output);
  if (model) return MakeChatContext(flags, *model, file.id, static_cast<size_t>(flags.models_max), std::move(store));
  if (model.error().code != ErrorCode::kUnsupported) return tl::unexpected<Error>(model.error());
  PITH_ASSIGN_OR_RETURN(ModelOverrides overrides, flags.model.Overrides());
  auto embeds = LoadEmbeddings(flags, file.path, file.id, std::move(overrides));
  return embeds ? std::move(embeds) : tl::unexpected<Error>(model.error());
}

// GGUF files of a folder, by name; of split ones the first part.
std::vector<server::ModelFile> ScanModels(const std::string& folder) {
  std::vector<server::ModelFile> files;
  std::error_code error;
  for (std::filesystem::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::filesystem::path& path = at->path();
    std::string id = path.stem().string();
    std::error_code ignored;
    if (path.extension() != ".gguf" || id.starts_with("mmproj") || !at->is_regular_file(ignored)) continue;
    constexpr std::string_view kFirst = "-00001-of-";
    const size_t part = id.rfind("-of-");
    const bool is_split = part != std::string::npos && part >= 6 && id[part - 6] == '-' && id.size() == part + 9;
    if (is_split && id.compare(part - 6, kFirst.size(), kFirst) != 0) continue;
    if (is_split) id.resize(part - 6);
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0) continue;
    files.push_back({.id = id,
                     .path = path.string(),
                     .bytes = static_cast<size_t>(info.st_size),
                     .modified = static_cast<int64_t>(info.st_mtime)});
  }
  std::ranges::sort(files, {}, &server::ModelFile::id);
  return files;
}

Result<server::ServerOptions> MakeServerOptions(const ServeFlags& flags, std::vector<std::string> keys) {
  server::ServerOptions options;
  options.http.host = flags.host;
  options.http.port = flags.port;
  options.http.num_workers = flags.http_threads;
  options.http.limits.connections = flags.connections;
  options.http.limits.write_seconds = flags.timeout;
  options.http.limits.body_seconds = 2.0 * flags.timeout;
  options.api_keys = std::move(keys);
  options.responses.most = static_cast<size_t>(flags.kept_responses);
  PITH_ASSIGN_OR_RETURN(options.responses.bytes, ParseSize(flags.kept_responses_bytes));
  return options;
}

// The models that are served, and the sentence about them.
Result<std::unique_ptr<server::ModelCatalog>> MakeCatalog(const ServeFlags& flags, std::string* what) {
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<store::Store> store, flags.store.OpenStore());
  server::CatalogOptions options;
  if (!flags.models.empty()) {
    options.max_loaded = flags.models_max;
    options.keep_seconds = flags.keep_alive;
    options.scan = [folder = flags.models] { return ScanModels(folder); };
    options.load = [flags, store](const server::ModelFile& file) { return LoadFile(flags, file, store); };
  }
  auto catalog = std::make_unique<server::ModelCatalog>(options);
  if (flags.models.empty()) {
    PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
    PITH_ASSIGN_OR_RETURN(std::unique_ptr<server::ServerContext> context,
                          MakeChatContext(flags, model, flags.alias, 1, store));
    *what = model->info().description;
    catalog->AddLoaded(std::move(context));
  } else {
    *what = fmt::format("the {} models of {}", catalog->List().size(), flags.models);
  }
  if (!flags.embedding_model.empty()) {
    PITH_ASSIGN_OR_RETURN(std::unique_ptr<server::ServerContext> context,
                          LoadEmbeddings(flags, flags.embedding_model, "", {}));
    catalog->AddLoaded(std::move(context));
  }
  return catalog;
}

// Requests are made on some threads and freed on others, so that each thread's heap would keep what it had at most: few
// heaps, and large pieces go back to the system at once.
void KeepHeapsSmall() {
#if defined(__GLIBC__)
  constexpr int kHeaps = 2, kLargePiece = 128 << 10;
  (void)::mallopt(M_ARENA_MAX, kHeaps);
  (void)::mallopt(M_MMAP_THRESHOLD, kLargePiece);
#endif
}

Result<int> Serve(ServeFlags& flags) {
  KeepHeapsSmall();
  PITH_ASSIGN_OR_RETURN(std::vector<std::string> keys, ApiKeys(flags));
  PromptFlags text;
  text.template_file = flags.template_file;
  PITH_RETURN_IF_ERROR(text.ReadFiles(flags.model));
  std::string what;
  PITH_ASSIGN_OR_RETURN(const server::ServerOptions options, MakeServerOptions(flags, std::move(keys)));
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<server::ModelCatalog> catalog, MakeCatalog(flags, &what));
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<server::Server> serving,
                        server::Server::Create(options, std::move(catalog)));
  const bool is_v6 = flags.host.find(':') != std::string::npos;
  fmt::print("pith serves {} at http://{}{}{}:{}\n", what, is_v6 ? "[" : "", flags.host, is_v6 ? "]" : "",
             serving->port());
  std::fflush(stdout);
  while (!Interrupted()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  serving->Drain(flags.drain_seconds);
  return kExitOk;
}

void AddServerFlags(CLI::App& command, ServeFlags& flags) {
  AddOption(command, "--host", flags.host, "Address to listen at (default 127.0.0.1: this machine alone)", "ADDRESS");
  AddNumber(command, "--port", flags.port, 0, 65535, "Port (default 8080; 0: any that is free)", "N");
  AddOption(command, "-a,--alias", flags.alias, "Name of the model in answers (default: the file's)", "NAME");
  AddOption(command, "--models,--models-dir", flags.models,
            "Folder of GGUF files, loaded when a request names one, instead of the one model of -m", "FOLDER");
  AddNumber(command, "--models-max", flags.models_max, 1, 64,
            "Of these, loaded at once, each with its share of the budget (default 1)", "N");
  AddNumber(command, "--keep-alive", flags.keep_alive, -1, 1000000,
            "Seconds that an unused one stays loaded (default -1: until another one wants its place)", "SECONDS");
  AddOption(command, "--embedding-model", flags.embedding_model,
            "GGUF file of an encoder for requests for embeddings (default: the model itself gives them)", "FILE");
  AddOption(command, "--api-key", flags.api_keys,
            "Key that clients must send, for everything but /health; several between commas", "KEY");
  AddOption(command, "--api-key-file", flags.api_key_file, "The same from a file, one a line", "FILE");
  AddOption(command, "--slot-save-path", flags.slot_save_path, "Folder of saved slots (default: none are saved)",
            "FOLDER");
  AddOption(command, "--prompt-share", flags.prompt_share,
            "Share that prompts have while others decode: 1 reads as fast as it goes, less keeps the gaps between "
            "tokens short (default 0.85)",
            "SHARE");
  AddOption(
      command, "--keep", flags.keep,
      "Share of a whole prompt's bytes that stays with --compress after, where a request names no budget (default "
      "0.3)",
      "SHARE");
  AddNumber(command, "--queue", flags.queue, 0, 100000, "Requests that may wait; more get 429 (default 256)", "N");
  AddNumber(
      command, "--overtaking", flags.overtaking, 0, 86400,
      "Seconds by which a shorter prompt may come later than a longer one and still be read first (default 60; 0: "
      "as they come)",
      "SECONDS");
  AddNumber(command, "--max-retained", flags.max_retained, 0, 4096,
            "Prefixes kept for later requests, inside the budget (default 64)", "N");
  AddNumber(command, "--kept-responses", flags.kept_responses, 0, 1000000,
            "Answers of /v1/responses kept for previous_response_id, the oldest go first (default 1000; 0: none)", "N");
  AddOption(command, "--kept-responses-bytes", flags.kept_responses_bytes,
            "Bytes that they may have together, beside the budget (default 64MiB)", "SIZE");
  AddNumber(command, "--cache-reuse", flags.cache_reuse, 0, 1000000,
            "An edit within a prompt: parts of kept prefixes of at least so many tokens that stand elsewhere now are "
            "taken over, not read (default 0: none)",
            "N");
  AddFlag(command, "--deterministic-reuse", flags.deterministic_reuse,
          "The same text with and without a kept prefix, bit for bit (slower)");
  AddNumber(command, "--connections", flags.connections, 1, 1000000, "Connections at once (default 1024)", "N");
  AddNumber(command, "--threads-http", flags.http_threads, 1, 256, "Threads for JSON, templates and tokens (default 2)",
            "N");
  AddNumber(command, "--timeout", flags.timeout, 1, 86400,
            "-to: seconds after which a client that takes or sends nothing is dropped (default 30)", "SECONDS");
  AddNumber(command, "--sse-ping-interval", flags.ping_seconds, -1, 86400,
            "Seconds after which a stream that is silent gets a comment, so that no proxy takes it for dead (default "
            "30; -1: none)",
            "SECONDS");
  AddNumber(command, "--drain", flags.drain_seconds, 0, 86400,
            "Seconds that what runs may take after SIGTERM (default 600)", "SECONDS");
  AddOption(command, "--chat-template-file", flags.template_file, "Chat template from a file, as --chat-template",
            "FILE");
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
      {"--sse-ping-interval", "LLAMA_ARG_SSE_PING_INTERVAL"},
      {"--chat-template", "LLAMA_ARG_CHAT_TEMPLATE"},
      {"--chat-template-file", "LLAMA_ARG_CHAT_TEMPLATE_FILE"},
      {"--api-key-file", "LLAMA_ARG_API_KEY_FILE"},
      {"--slot-save-path", "LLAMA_ARG_SLOT_SAVE_PATH"},
      {"--cache-reuse", "LLAMA_ARG_CACHE_REUSE"},
      {"--models", "LLAMA_ARG_MODELS_DIR"},
      {"--models-max", "LLAMA_ARG_MODELS_MAX"},
  };
  for (const auto& [option, variable] : kVariables) FromEnvironment(command, option, variable);
  for (const RopeSetting& setting : kRopeSettings) {
    std::string variable = fmt::format("LLAMA_ARG_{}", setting.name);
    std::ranges::transform(variable, variable.begin(),
                           [](unsigned char c) { return c == '-' ? '_' : static_cast<char>(std::toupper(c)); });
    if (variable == "LLAMA_ARG_ROPE_SCALING") variable += "_TYPE";
    FromEnvironment(command, fmt::format("--{}", setting.name), variable);
  }
}

}  // namespace

void AddServe(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<ServeFlags>();
  CLI::App* command =
      AddCommand(app, "serve", "Serve a model over HTTP to many clients, under one budget", kServeExamples);
  AddServerFlags(*command, *flags);
  AddModelFlags(*command, flags->model);
  AddCacheFlags(*command, flags->cache);
  AddSaveFormat(*command, flags->cache.save_format);
  AddStoreFlag(*command, flags->store);
  AddSamplerFlags(*command, flags->sampler);
  AddFlag(*command, "--progress", flags->output.progress, "Show progress even where standard error is no terminal");
  AddVariables(*command);
  OnCommand(*command, [flags, &chosen] {
    chosen.check = [flags] { return CheckServe(*flags); };
    chosen.run = [flags] { return Serve(*flags); };
  });
}

}  // namespace pith::cli
