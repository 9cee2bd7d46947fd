// Whatever a store's server answers is a miss or what was given to it: keys, headers and parts of objects that are
// absent, others' or damaged; and bytes of RESP, through libvalkey's reader and what is made of its replies.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/crc32c.h"
#include "fuzz/records.h"
#include "store/remote_tier.h"
#ifdef PITH_VALKEY
#include "store/valkey_reply.h"
#endif

namespace {

using namespace pith;
using namespace pith::store;
using fuzz::Input;
using Values = std::map<std::string, std::vector<std::byte>>;

// Gives what the input says, else what it was given.
class Liar final : public RemoteClient {
 public:
  Liar(Input& input, std::shared_ptr<Values> values) : input_(input), values_(std::move(values)) {}

  Status Get(std::span<const std::string> keys,
             const std::function<void(size_t i, std::span<const std::byte> value)>& visit) override {
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto found = values_->find(keys[i]);
      std::vector<std::byte> value = found != values_->end() ? found->second : std::vector<std::byte>();
      switch (input_.Byte() % 8) {
        case 1: value.clear(); break;
        case 2: {
          const std::span<const std::byte> other = input_.Some(input_.Byte());
          value.assign(other.begin(), other.end());
          break;
        }
        case 3: value = fuzz::MakeHeader(input_); break;
        case 4:
          if (!value.empty()) fuzz::Damage(input_, value);
          break;
        case 5:
          if (!values_->empty()) value = values_->begin()->second;
          break;
        case 6: value.resize(input_.Short() % 9000); break;
        case 7:
          if (input_.Byte() == 0) return IoError("no answer");
          break;
        default: break;
      }
      if (!value.empty()) visit(i, value);
    }
    return {};
  }
  Status Set(std::span<const RemoteItem> items, uint64_t) override {
    for (const RemoteItem& item : items) {
      if (input_.Byte() == 0xff) return IoError("no answer");
      if (!item.only_if_absent || !values_->contains(item.key)) {
        (*values_)[item.key].assign(item.value.begin(), item.value.end());
      }
    }
    return {};
  }
  Status Delete(std::span<const std::string> keys) override {
    for (const std::string& key : keys) values_->erase(key);
    return {};
  }

 private:
  Input& input_;
  std::shared_ptr<Values> values_;
};

void Ask(Input& input) {
  const auto values = std::make_shared<Values>();
  RemoteTier tier({}, std::make_unique<Liar>(input, values), std::make_unique<Liar>(input, values));
  const ObjectInfo info = fuzz::MakeInfo(input);
  std::vector<std::byte> payload(info.payload_bytes, std::byte{7});
  const auto written = tier.Write(info, payload);
  const auto headers = tier.Lookup(MakeChain(info.root, info.tokens));
  if (!headers) return;
  for (const RecordHeader& header : *headers) {
    // What is found says of itself what it is.
    if (header.removed || MakeChain(header.info.root, header.info.tokens).whole != header.info.key) std::abort();
    if (header.info.payload_bytes > 9000) continue;
    std::vector<std::byte> read(header.info.payload_bytes);
    const Status status =
        tier.Read(header.info.key, {header.number, header.info.payload_bytes, header.payload_crc}, read);
    if (status && Crc32c(read) != header.payload_crc) std::abort();
    if (status && written && header.number == written->number && read != payload) std::abort();
  }
  (void)tier.Erase(info.key);
}

#ifdef PITH_VALKEY
// RESP in two pieces, as a network may cut them.
void Read(Input& input, size_t size) {
  const std::unique_ptr<valkeyReader, void (*)(valkeyReader*)> reader(valkeyReaderCreate(), valkeyReaderFree);
  ExpectNoLists(*reader);
  const size_t first = input.Byte();
  for (const size_t count : {first, size_t{4096}}) {
    const std::span<const std::byte> some = input.Some(count);
    if (valkeyReaderFeed(reader.get(), reinterpret_cast<const char*>(some.data()), some.size()) != VALKEY_OK) return;
    for (void* reply = nullptr; valkeyReaderGetReply(reader.get(), &reply) == VALKEY_OK && reply != nullptr;) {
      const Reply owned(static_cast<valkeyReply*>(reply));
      std::optional<std::span<const std::byte>> value;
      const bool may_be = owned->type == VALKEY_REPLY_NIL || owned->type == VALKEY_REPLY_STRING;
      if (IsValue(*owned, value) != may_be) std::abort();
      if (!value) continue;
      if (value->size() > size) std::abort();
      (void)DecodeHeader(*value);
    }
  }
}
#endif

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const bool asks = (input.Byte() & 1) != 0;
#ifdef PITH_VALKEY
  if (!asks) Read(input, size);
#endif
  if (asks) Ask(input);
  return 0;
}
