#include "server/catalog.h"

#include <atomic>
#include <future>
#include <thread>

#include <gtest/gtest.h>

#include "server/server_test_util.h"

namespace pith::testing {
namespace {

using server::ModelCatalog;
using server::ModelFile;
using server::ModelLease;

// Files a, b and c, of which c cannot be loaded.
struct Files {
  explicit Files(int max_loaded = 1, double keep_seconds = -1) {
    server::CatalogOptions options;
    options.max_loaded = max_loaded;
    options.keep_seconds = keep_seconds;
    options.scan = [] {
      std::vector<ModelFile> files;
      for (const char* id : {"a", "b", "c"}) files.push_back({.id = id, .path = std::string("/") + id});
      return files;
    };
    options.load = [this](const ModelFile& file) -> Result<std::unique_ptr<server::ServerContext>> {
      ++loads;
      if (file.id == "c") return Corrupt("it is broken");
      auto context = std::make_unique<server::ServerContext>();
      context->model.id = file.id;
      context->scheduler = std::make_shared<FakeScheduler>();
      return context;
    };
    catalog.emplace(std::move(options));
  }

  std::future<Result<ModelLease>> Ask(const std::string& name) {
    auto promise = std::make_shared<std::promise<Result<ModelLease>>>();
    catalog->Acquire(name, false, [promise](Result<ModelLease> lease) { promise->set_value(std::move(lease)); });
    return promise->get_future();
  }
  std::string Loaded() {
    std::string names;
    for (const server::ModelState& state : catalog->List()) names += state.loaded ? state.file.id : "";
    return names;
  }

  std::atomic<int> loads{0};
  std::optional<ModelCatalog> catalog;
};

TEST(ModelCatalog, LoadsWhatIsAskedForAndMakesPlace) {
  Files files;
  EXPECT_EQ(files.Loaded(), "");
  {
    const Result<ModelLease> a = files.Ask("a").get();
    ASSERT_TRUE(a);
    EXPECT_EQ(a->context->model.id, "a");
    EXPECT_EQ(files.Ask("a:latest").get()->context, a->context);
    EXPECT_EQ(files.Ask("").get()->context, a->context);
    EXPECT_EQ(files.loads, 1);
    std::future<Result<ModelLease>> b = files.Ask("b");  // once nobody uses a
    EXPECT_EQ(b.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
    std::future<Result<ModelLease>> again = files.Ask("a");  // does not keep its place for ever
    EXPECT_EQ(again.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
    const_cast<Result<ModelLease>&>(a)->lease.reset();
    EXPECT_EQ(b.get()->context->model.id, "b");
    EXPECT_EQ(again.get()->context->model.id, "a");
  }
  EXPECT_EQ(files.Loaded(), "a");
}

TEST(ModelCatalog, TwoAtOnce) {
  Files files(2);
  const Result<ModelLease> a = files.Ask("a").get(), b = files.Ask("b").get();
  ASSERT_TRUE(a && b);
  EXPECT_EQ(files.Loaded(), "ab");
}

TEST(ModelCatalog, WhatCannotBeHad) {
  Files files;
  EXPECT_EQ(files.Ask("none").get().error().code, ErrorCode::kNotFound);
  EXPECT_EQ(files.Ask("c").get().error().code, ErrorCode::kCorrupt);
  EXPECT_TRUE(files.Ask("a").get());
  files.catalog->Drain(1);
  EXPECT_EQ(files.Ask("b").get().error().code, ErrorCode::kBusy);
}

TEST(ModelCatalog, UnusedFilesAreUnloaded) {
  Files files(1, 0.05);
  EXPECT_TRUE(files.Ask("a").get());
  for (int i = 0; i < 200 && files.Loaded() != ""; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(files.Loaded(), "");
  std::optional<Result<ModelLease>> a = files.Ask("a").get();
  files.catalog->KeepAlive("a", 3600);
  a.reset();
  std::this_thread::sleep_for(std::chrono::milliseconds(120));
  EXPECT_EQ(files.Loaded(), "a");
  files.catalog->KeepAlive("a", 0);
  for (int i = 0; i < 200 && files.Loaded() != ""; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(files.Loaded(), "");
}

TEST(ModelCatalog, OneModelAnswersToEveryName) {
  ModelCatalog catalog;
  server::ServerContext chat, encoder;
  chat.model.id = "chat";
  encoder.model.id = "encoder";
  encoder.model.generates = false;
  chat.scheduler = encoder.scheduler = std::make_shared<FakeScheduler>();
  catalog.AddLoaded(chat);
  catalog.AddLoaded(encoder);
  const auto ask = [&](const char* name, bool for_embeddings) {
    std::string id;
    catalog.Acquire(name, for_embeddings, [&](const Result<ModelLease>& lease) { id = lease->context->model.id; });
    return id;
  };
  EXPECT_EQ(ask("anything", false), "chat");
  EXPECT_EQ(ask("anything", true), "encoder");
  EXPECT_EQ(ask("chat", true), "chat");
  EXPECT_EQ(ask("", true), "encoder");
}

}  // namespace
}  // namespace pith::testing
