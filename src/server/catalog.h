// The models that a server offers: loaded from the start, or files that are loaded when a request names them and
// unloaded when their place is wanted or nobody has used them for a while.
//
// Threads: any. Files are loaded on a thread of the catalog's own.
#ifndef PITH_SERVER_CATALOG_H_
#define PITH_SERVER_CATALOG_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "pith/types.h"
#include "server/protocol.h"

namespace pith::server {

struct ModelFile {
  std::string id;
  std::string path;
  size_t bytes = 0;
  int64_t modified = 0;  // unix time
};

struct CatalogOptions {
  int max_loaded = 1;        // of the files
  double keep_seconds = -1;  // that an unused file stays loaded; negative: until its place is wanted
  std::function<std::vector<ModelFile>()> scan;  // the files there are now, by name; null: none
  std::function<Result<std::unique_ptr<ServerContext>>(const ModelFile&)> load;
};

// A model in use. It stays loaded as long as `lease` is held.
struct ModelLease {
  ServerContext* context = nullptr;
  std::shared_ptr<const void> lease;
};

struct ModelState {
  ModelFile file;  // path empty: loaded from the start
  std::optional<ModelLease> loaded;
  double expires_seconds = -1;  // from now, where it is loaded; negative: never
};

class ModelCatalog {
 public:
  explicit ModelCatalog(CatalogOptions options = {});
  // Nothing is in use any more.
  ~ModelCatalog();

  // One that stays loaded. The first that generates answers to every name, and so does the first that only embeds for
  // embeddings, where there are no files.
  void AddLoaded(std::unique_ptr<ServerContext> context);
  void AddLoaded(ServerContext& context);  // the caller's, which outlives the catalog

  using Then = std::function<void(Result<ModelLease>)>;
  // Calls `then` once: at once where the model is loaded, else from the catalog's thread. An empty name means the model
  // that was used last, or the first. kNotFound: there is none of that name; kBusy: too many requests wait for models,
  // or the server ends; or what loading says.
  void Acquire(const std::string& name, bool for_embeddings, Then then);
  // The same, but nothing is loaded for it; context null: none is.
  ModelLease AcquireLoaded(const std::string& name);

  std::vector<ModelState> List();
  // How long that file stays loaded when it is not used any more.
  void KeepAlive(const std::string& id, double seconds);
  bool has_files() const { return options_.scan != nullptr; }

  // No more loading; every model's scheduler finishes what runs, within `seconds` together.
  void Drain(double seconds);
  bool draining() const { return draining_.load(); }

 private:
  using Clock = std::chrono::steady_clock;
  struct Entry;
  struct Pending {
    std::string name;
    bool for_embeddings = false;
    Then then;
  };

  // All but Run() and Load() with mutex_ held.
  void Run();
  void Rescan();
  Entry* Find(const std::string& name, bool for_embeddings);
  ModelLease Lend(Entry& entry, bool is_use = true);  // false: somebody only looks
  std::unique_ptr<ServerContext> TakeExpired();
  bool MakePlace(std::unique_lock<std::mutex>& lock);
  Result<ModelLease> Load(const Pending& pending);
  double NextExpiry() const;
  Error NotFoundError(const std::string& name) const;

  const CatalogOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::shared_ptr<Entry>> entries_;
  std::deque<Pending> pending_;
  uint64_t uses_ = 0;
  bool stops_ = false;
  std::atomic<bool> draining_{false};
  std::thread thread_;
};

}  // namespace pith::server

#endif  // PITH_SERVER_CATALOG_H_
