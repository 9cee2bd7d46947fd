// llama-server's view: slots, whose prefixes can be saved to files and come back.
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <future>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/json_text.h"
#include "server/scheduler_impl.h"

namespace pith::server {
namespace {

constexpr size_t kLongestName = 200;

// What a file says of the prefix beside its tokens.
std::string NoteOf(const Prefix& prefix) {
  return JsonText(nlohmann::json{{"tenant", prefix.key.tenant},
                                 {"kv_budget", prefix.key.kv_budget_bytes},
                                 {"compress", prefix.key.compress},
                                 {"cache_key", prefix.cache_key},
                                 {"prompt_tokens", prefix.num_prompt_tokens},
                                 {"pinned", prefix.num_pinned},
                                 {"pieces", prefix.has_pieces}});
}

bool ReadNote(const SessionNote& note, Prefix* prefix) {
  const nlohmann::json json = JsonOf(note.text);
  const auto number = [&](const char* name, size_t* to) {
    const auto found = json.find(name);
    if (found == json.end() || !found->is_number_unsigned()) return false;
    *to = found->get<size_t>();
    return true;
  };
  if (!json.is_object() || !json.contains("tenant") || !json["tenant"].is_string()) return false;
  if (!json.contains("cache_key") || !json["cache_key"].is_string()) return false;
  prefix->tokens = note.tokens;
  prefix->key.tenant = json["tenant"].get<std::string>();
  prefix->cache_key = json["cache_key"].get<std::string>();
  if (json.contains("compress") && json["compress"].is_string())
    prefix->key.compress = json["compress"].get<std::string>();
  prefix->has_pieces = json.contains("pieces") && json["pieces"] == true;
  return number("kv_budget", &prefix->key.kv_budget_bytes) && number("prompt_tokens", &prefix->num_prompt_tokens) &&
         number("pinned", &prefix->num_pinned) && prefix->num_prompt_tokens <= note.tokens.size() &&
         prefix->num_pinned <= note.tokens.size();
}

size_t FileBytes(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 ? static_cast<size_t>(info.st_size) : 0;
}

}  // namespace

Status SchedulerImpl::CheckSlot(int slot) const {
  if (slot < 0 || slot >= options_.max_running) return NotFound(fmt::format("there is no slot {}", slot));
  if (slots_[static_cast<size_t>(slot)] == nullptr) return {};
  return Busy(fmt::format("slot {} is processing a request", slot));
}

// Within the one folder, whatever the name.
Result<std::string> SchedulerImpl::SlotPath(const std::string& name) const {
  if (options_.save_folder.empty()) return Unsupported("this server was started without a folder for saved slots");
  const bool plain = std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  });
  if (name.empty() || name.size() > kLongestName || !plain || name.front() == '.') {
    return InvalidArgument("a file name consists of letters, digits, '-', '_' and '.', and does not begin with a '.'");
  }
  return options_.save_folder + "/" + name;
}

int SchedulerImpl::RestingIn(int slot) const {
  const std::span<const Prefix> all = prefixes_.prefixes();
  for (size_t i = all.size(); i-- > 0;) {
    if (all[i].slot == slot && !all[i].checkpoint) return static_cast<int>(i);
  }
  return -1;
}

template <typename T>
T SchedulerImpl::OnEngine(const std::function<T()>& fn) {
  auto task = std::make_shared<std::packaged_task<T()>>(fn);
  std::future<T> result = task->get_future();
  {
    const std::lock_guard lock(mutex_);
    commands_.push_back([task] { (*task)(); });
  }
  wake_.notify_all();
  return result.get();
}

Result<SavedSlot> SchedulerImpl::SaveSlot(int slot, const std::string& file_name) {
  PITH_ASSIGN_OR_RETURN(const std::string path, SlotPath(file_name));
  return OnEngine<Result<SavedSlot>>([&]() -> Result<SavedSlot> {
    PITH_RETURN_IF_ERROR(CheckSlot(slot));
    const int index = RestingIn(slot);
    if (index < 0) return NotFound(fmt::format("slot {} holds nothing", slot));
    const Prefix& prefix = prefixes_.prefixes()[static_cast<size_t>(index)];
    const auto start = SteadyClock::now();
    PITH_RETURN_IF_ERROR(engine_->Save(prefix.sequence, path, {.tokens = prefix.tokens, .text = NoteOf(prefix)}));
    return SavedSlot{.tokens = static_cast<int>(prefix.tokens.size()),
                     .bytes = FileBytes(path),
                     .seconds = SecondsBetween(start, SteadyClock::now())};
  });
}

Result<SavedSlot> SchedulerImpl::RestoreSlot(int slot, const std::string& file_name) {
  PITH_ASSIGN_OR_RETURN(const std::string path, SlotPath(file_name));
  return OnEngine<Result<SavedSlot>>([&]() -> Result<SavedSlot> {
    PITH_RETURN_IF_ERROR(CheckSlot(slot));
    const auto start = SteadyClock::now();
    SequenceOptions options = engine_->options();
    options.floor_bytes = 1;
    options.ceiling_bytes = total_bytes_;
    const auto restore = [&](const SequenceOptions& as) {
      Result<RestoredSequence> one = engine_->Restore(path, as);
      while (!one && one.error().code == ErrorCode::kOutOfBudget && DropPrefix()) one = engine_->Restore(path, as);
      return one;
    };
    Result<RestoredSequence> restored = restore(options);
    if (!restored && restored.error().code == ErrorCode::kInvalidArgument) {
      // A request may have had its prompt compressed once.
      SequenceOptions whole = options;
      whole.recipe = whole_recipe_;
      whole.compress = CompressMode::kAfter;
      if (Result<RestoredSequence> other = restore(whole)) restored = std::move(other);
    }
    if (!restored) return tl::unexpected<Error>(restored.error());
    Prefix prefix;
    prefix.sequence = restored->sequence;
    prefix.slot = slot;
    prefix.key.recipe = options.recipe.text;
    const bool whole = ReadNote(restored->note, &prefix) &&
                       static_cast<size_t>(engine_->num_tokens(restored->sequence)) == prefix.tokens.size();
    if (!whole) {
      engine_->Free(restored->sequence);
      return Corrupt(fmt::format("{} is no saved slot", file_name));
    }
    (void)EraseResting(slot);
    while (prefixes_.size() >= static_cast<size_t>(std::max(options_.max_retained, 1)) && DropPrefix()) {
    }
    SavedSlot done{.tokens = static_cast<int>(prefix.tokens.size()),
                   .bytes = FileBytes(path),
                   .tenant = prefix.key.tenant,
                   .restored = prefix.tokens};
    AddPrefix(std::move(prefix));
    done.seconds = SecondsBetween(start, SteadyClock::now());
    return done;
  });
}

// Checkpoints included: nothing of what was read in it stays.
int SchedulerImpl::EraseResting(int slot) {
  int tokens = 0;
  for (int i = static_cast<int>(prefixes_.size()) - 1; i >= 0; --i) {
    if (prefixes_.prefixes()[static_cast<size_t>(i)].slot != slot) continue;
    const Prefix gone = prefixes_.Take(i);
    tokens = std::max(tokens, static_cast<int>(gone.tokens.size()));
    engine_->Free(gone.sequence);
  }
  room_changed_ = true;
  return tokens;
}

Result<SlotToken> SchedulerImpl::TokenInSlot(int slot, int position, const std::string& tenant) {
  return OnEngine<Result<SlotToken>>([&]() -> Result<SlotToken> {
    PITH_RETURN_IF_ERROR(CheckSlot(slot));
    const int index = RestingIn(slot);
    const Prefix* const prefix = index < 0 ? nullptr : &prefixes_.prefixes()[static_cast<size_t>(index)];
    if (prefix == nullptr || prefix->key.tenant != tenant) return NotFound(fmt::format("slot {} holds nothing", slot));
    PITH_ASSIGN_OR_RETURN(std::vector<std::vector<EntryView>> layers, engine_->EntriesAt(prefix->sequence, position));
    return SlotToken{.num_tokens = static_cast<int>(prefix->tokens.size()),
                     .recipe = prefix->key.recipe,
                     .layers = std::move(layers)};
  });
}

Result<int> SchedulerImpl::EraseSlot(int slot) {
  return OnEngine<Result<int>>([&]() -> Result<int> {
    PITH_RETURN_IF_ERROR(CheckSlot(slot));
    if (RestingIn(slot) < 0) return NotFound(fmt::format("slot {} holds nothing", slot));
    return EraseResting(slot);
  });
}

}  // namespace pith::server
