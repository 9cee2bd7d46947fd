#include "server/catalog.h"

#include <algorithm>
#include <exception>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/escaped.h"

namespace pith::server {
namespace {

constexpr size_t kMostPending = 256;
constexpr std::string_view kLatest = ":latest";  // what Ollama's clients put behind a name without a tag

}  // namespace

struct ModelCatalog::Entry {
  ModelFile file;
  std::unique_ptr<ServerContext> own;
  ServerContext* context = nullptr;  // null: not loaded
  bool stays = false;
  bool closing = false;  // its place is wanted
  int leases = 0;
  uint64_t last_use = 0;
  double keep_seconds = -1;
  Clock::time_point idle_since;

  bool is_expired(Clock::time_point now) const {
    return own != nullptr && !stays && leases == 0 && keep_seconds >= 0 &&
           now - idle_since >= std::chrono::duration<double>(keep_seconds);
  }
};

ModelCatalog::ModelCatalog(CatalogOptions options) : options_(std::move(options)) {
  if (options_.scan == nullptr) return;
  Rescan();
  thread_ = std::thread([this] { Run(); });
}

ModelCatalog::~ModelCatalog() {
  {
    const std::lock_guard lock(mutex_);
    stops_ = draining_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  // A scheduler that ends lets go of answers, which give their leases back here.
  for (const std::shared_ptr<Entry>& entry : entries_) entry->own.reset();
}

void ModelCatalog::AddLoaded(std::unique_ptr<ServerContext> context) {
  AddLoaded(*context);
  entries_.back()->own = std::move(context);
}

void ModelCatalog::AddLoaded(ServerContext& context) {
  const std::lock_guard lock(mutex_);
  auto entry = std::make_shared<Entry>();
  entry->file = {.id = context.model.id,
                 .path = {},
                 .bytes = context.model.info.file_bytes,
                 .modified = context.model.created};
  entry->context = &context;
  entry->stays = true;
  entries_.push_back(std::move(entry));
}

// Files that are gone stay as long as they are loaded.
void ModelCatalog::Rescan() {
  if (options_.scan == nullptr) return;
  const std::vector<ModelFile> files = options_.scan();
  const auto is_there = [&](const std::shared_ptr<Entry>& entry) {
    return entry->context != nullptr ||
           std::ranges::any_of(files, [&](const ModelFile& file) { return file.path == entry->file.path; });
  };
  std::erase_if(entries_, [&](const std::shared_ptr<Entry>& entry) { return !is_there(entry); });
  for (const ModelFile& file : files) {
    const bool known = std::ranges::any_of(entries_, [&](const auto& entry) { return entry->file.id == file.id; });
    if (known) continue;
    entries_.push_back(std::make_shared<Entry>());
    entries_.back()->file = file;
    entries_.back()->keep_seconds = options_.keep_seconds;
  }
}

ModelCatalog::Entry* ModelCatalog::Find(const std::string& name, bool for_embeddings) {
  std::string id = name;
  for (const std::shared_ptr<Entry>& entry : entries_) {
    if (entry->file.id == id || entry->file.id + std::string(kLatest) == id) return entry.get();
  }
  Entry* best = nullptr;
  for (const std::shared_ptr<Entry>& entry : entries_) {
    if (!entry->stays) continue;
    const bool suits = entry->context->model.generates != for_embeddings;
    if (best == nullptr || (suits && best->context->model.generates == for_embeddings)) best = entry.get();
  }
  if (options_.scan == nullptr) return best;
  if (!name.empty()) return nullptr;
  if (best != nullptr) return best;
  for (const std::shared_ptr<Entry>& entry : entries_) {
    const bool is_better = best == nullptr || (entry->context != nullptr && entry->last_use > best->last_use);
    if (is_better) best = entry.get();
  }
  return best;
}

ModelLease ModelCatalog::Lend(Entry& entry, bool is_use) {
  if (is_use) entry.last_use = ++uses_;
  if (entry.stays) return {entry.context, nullptr};
  ++entry.leases;
  const auto self = std::ranges::find_if(entries_, [&](const auto& other) { return other.get() == &entry; });
  const auto give_back = [this, is_use, entry = *self](const void*) {
    {
      const std::lock_guard lock(mutex_);
      --entry->leases;
      if (is_use) entry->idle_since = Clock::now();
    }
    changed_.notify_all();
  };
  return {entry.context, std::shared_ptr<const void>(entry.context, give_back)};
}

Error ModelCatalog::NotFoundError(const std::string& name) const {
  std::vector<std::string> ids;
  for (const std::shared_ptr<Entry>& entry : entries_) ids.push_back(entry->file.id);
  const size_t most = std::min<size_t>(ids.size(), 20);
  return {ErrorCode::kNotFound,
          fmt::format("model '{}' not found; this server has {}", Escaped(name, 100),
                      ids.empty()
                          ? "none"
                          : fmt::format("'{}'", fmt::join(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(most),
                                                          "', '")))};
}

void ModelCatalog::Acquire(const std::string& name, bool for_embeddings, Then then) {
  Result<ModelLease> result = Busy("the server is shutting down");
  {
    const std::lock_guard lock(mutex_);
    Entry* entry = Find(name, for_embeddings);
    if (entry == nullptr) {
      Rescan();
      entry = Find(name, for_embeddings);
    }
    if (entry == nullptr) {
      result = tl::unexpected<Error>(NotFoundError(name));
    } else if (entry->context != nullptr && !entry->closing) {
      result = Lend(*entry);
    } else if (pending_.size() >= kMostPending) {
      result = Busy("too many requests wait for models; try again later");
    } else if (!draining_) {
      pending_.push_back({name, for_embeddings, std::move(then)});
      changed_.notify_all();
      return;
    }
  }
  then(std::move(result));
}

ModelLease ModelCatalog::AcquireLoaded(const std::string& name) {
  const std::lock_guard lock(mutex_);
  Entry* const entry = Find(name, false);
  if (entry == nullptr || entry->context == nullptr || entry->closing) return {};
  return Lend(*entry);
}

std::vector<ModelState> ModelCatalog::List() {
  const std::lock_guard lock(mutex_);
  Rescan();
  std::vector<ModelState> list;
  const Clock::time_point now = Clock::now();
  for (const std::shared_ptr<Entry>& entry : entries_) {
    ModelState state{.file = entry->file, .loaded = std::nullopt};
    if (entry->context != nullptr && !entry->closing) {
      if (!entry->stays && entry->keep_seconds >= 0) {
        const double idle =
            entry->leases > 0 ? 0 : std::chrono::duration<double>(now - entry->idle_since).count();
        state.expires_seconds = std::max(entry->keep_seconds - idle, 0.0);
      }
      state.loaded = Lend(*entry, false);
    }
    list.push_back(std::move(state));
  }
  return list;
}

void ModelCatalog::KeepAlive(const std::string& id, double seconds) {
  {
    const std::lock_guard lock(mutex_);
    for (const std::shared_ptr<Entry>& entry : entries_) {
      if (entry->file.id == id) entry->keep_seconds = seconds;
    }
  }
  changed_.notify_all();
}

void ModelCatalog::Drain(double seconds) {
  const Clock::time_point end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                                   std::chrono::duration<double>(std::clamp(seconds, 0.0, 1e8)));
  draining_ = true;
  changed_.notify_all();
  for (const ModelState& state : List()) {
    if (!state.loaded) continue;
    state.loaded->context->draining = true;
  }
  for (const ModelState& state : List()) {
    if (!state.loaded) continue;
    state.loaded->context->draining = true;
    const double left = std::chrono::duration<double>(end - Clock::now()).count();
    state.loaded->context->scheduler->Drain(std::max(left, 0.0));
  }
}

std::unique_ptr<ServerContext> ModelCatalog::TakeExpired() {
  const Clock::time_point now = Clock::now();
  for (const std::shared_ptr<Entry>& entry : entries_) {
    if (!entry->is_expired(now)) continue;
    entry->context = nullptr;
    return std::move(entry->own);
  }
  return nullptr;
}

double ModelCatalog::NextExpiry() const {
  double next = 3600;
  const Clock::time_point now = Clock::now();
  for (const std::shared_ptr<Entry>& entry : entries_) {
    if (entry->own == nullptr || entry->stays || entry->leases > 0 || entry->keep_seconds < 0) continue;
    const double idle = std::chrono::duration<double>(now - entry->idle_since).count();
    next = std::min(next, std::max(entry->keep_seconds - idle, 0.0));
  }
  return next + 0.001;
}

// The file that was not used for longest goes, once nobody uses it; requests for it wait until then. False: the end.
bool ModelCatalog::MakePlace(std::unique_lock<std::mutex>& lock) {
  for (;;) {
    std::shared_ptr<Entry> victim;
    int loaded = 0;
    for (const std::shared_ptr<Entry>& entry : entries_) {
      if (entry->stays || entry->context == nullptr) continue;
      ++loaded;
      if (victim == nullptr || entry->last_use < victim->last_use) victim = entry;
    }
    if (loaded < std::max(options_.max_loaded, 1)) return true;
    victim->closing = true;
    changed_.wait(lock, [&] { return stops_ || draining_ || victim->leases == 0; });
    if (stops_ || draining_) {
      victim->closing = false;
      return false;
    }
    std::unique_ptr<ServerContext> gone = std::move(victim->own);
    victim->context = nullptr;
    victim->closing = false;
    lock.unlock();
    gone.reset();
    lock.lock();
  }
}

Result<ModelLease> ModelCatalog::Load(const Pending& pending) {
  std::unique_lock lock(mutex_);
  Entry* entry = Find(pending.name, pending.for_embeddings);
  if (entry == nullptr) return tl::unexpected<Error>(NotFoundError(pending.name));
  if (entry->context == nullptr && !MakePlace(lock)) return Busy("the server is shutting down");
  entry = Find(pending.name, pending.for_embeddings);
  if (entry == nullptr) return tl::unexpected<Error>(NotFoundError(pending.name));
  if (entry->context == nullptr) {
    const ModelFile file = entry->file;
    lock.unlock();
    Result<std::unique_ptr<ServerContext>> made = options_.load(file);
    lock.lock();
    if (!made) return tl::unexpected<Error>(made.error());
    entry = Find(file.id, false);
    if (entry == nullptr) return tl::unexpected<Error>(NotFoundError(file.id));
    entry->own = std::move(*made);
    entry->context = entry->own.get();
    entry->keep_seconds = options_.keep_seconds;
  }
  return Lend(*entry);
}

void ModelCatalog::Run() {
  for (;;) {
    std::optional<Pending> next;
    std::unique_ptr<ServerContext> gone;
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, std::chrono::duration<double>(NextExpiry()), [this] {
        return stops_ || !pending_.empty() || std::ranges::any_of(entries_, [](const std::shared_ptr<Entry>& entry) {
                 return entry->is_expired(Clock::now());
               });
      });
      if (!pending_.empty()) {
        next = std::move(pending_.front());
        pending_.pop_front();
      } else if (stops_) {
        return;
      } else {
        gone = TakeExpired();
      }
    }
    if (!next) continue;
    Result<ModelLease> result = draining_ ? Result<ModelLease>(Busy("the server is shutting down")) : Load(*next);
    next->then(std::move(result));
  }
}

}  // namespace pith::server
