// Fills libllama's cache with made-up entries, so that decoding at a long context
// can be timed without reading a prompt for hours.
//
// The entries come as a state of one sequence, in the form that
// llama_state_seq_get_data writes in this version of libllama:
//
//   u32 magic  i32 sequence  u32 streams   (the magic is read from a state of an empty sequence)
//   per stream:  u32 cells, and if that is not 0
//     per cell:  i32 position  u32 1  i32 sequence
//     u32 values transposed (flash attention off)  u32 layers
//     per layer: i32 type  u64 bytes of a row      rows of keys
//     per layer: i32 type  u64 bytes of a row      rows of values, or if transposed
//                i32 type  u32 bytes of an element  u32 width   columns of values
//
// libllama checks counts, types and sizes of all of it and refuses another form.
// A restored sequence replaces what it held, so a long one is restored piece by
// piece into a spare sequence, whose cells are then given to the real one.
#include <algorithm>
#include <cstring>
#include <random>
#include <string>

#include "host/plain_context.h"

namespace pith {
namespace {

constexpr int kPieceTokens = 2048;
// Rows that differ; they repeat from there on.
constexpr size_t kDistinctRows = 64;

class Blob {
 public:
  template <typename T>
  void Put(T value) {
    Append(&value, sizeof value);
  }
  void Append(const void* from, size_t bytes) {
    const size_t at = data_.size();
    data_.resize(at + bytes);
    std::memcpy(data_.data() + at, from, bytes);
  }
  const std::vector<uint8_t>& data() const { return data_; }

 private:
  std::vector<uint8_t> data_;
};

// kDistinctRows rows of `width` normal numbers in the cache's type.
std::vector<uint8_t> RandomRows(ggml_type type, size_t width, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> floats(kDistinctRows * width);
  for (float& value : floats) value = normal(random);
  std::vector<uint8_t> rows(kDistinctRows * ggml_row_size(type, static_cast<int64_t>(width)));
  ggml_quantize_chunk(type, floats.data(), rows.data(), 0, static_cast<int64_t>(kDistinctRows),
                      static_cast<int64_t>(width), nullptr);
  return rows;
}

struct Piece {
  int sequence;
  int first_position;
  int num_tokens;
};

void PutRows(Blob& blob, ggml_type type, size_t width, int num_tokens, uint32_t seed) {
  const size_t row_bytes = ggml_row_size(type, static_cast<int64_t>(width));
  const std::vector<uint8_t> rows = RandomRows(type, width, seed);
  blob.Put(static_cast<int32_t>(type));
  blob.Put(static_cast<uint64_t>(row_bytes));
  for (size_t at = 0; at < static_cast<size_t>(num_tokens); at += kDistinctRows) {
    blob.Append(rows.data(), row_bytes * std::min(kDistinctRows, static_cast<size_t>(num_tokens) - at));
  }
}

void PutColumns(Blob& blob, ggml_type type, size_t width, int num_tokens, uint32_t seed) {
  const size_t element_bytes = ggml_type_size(type);
  const std::vector<uint8_t> rows = RandomRows(type, std::max(width, kDistinctRows), seed);
  blob.Put(static_cast<int32_t>(type));
  blob.Put(static_cast<uint32_t>(element_bytes));
  blob.Put(static_cast<uint32_t>(width));
  std::vector<uint8_t> column;
  while (column.size() < static_cast<size_t>(num_tokens) * element_bytes) {
    column.insert(column.end(), rows.begin(), rows.end());
  }
  for (size_t i = 0; i < width; ++i) blob.Append(column.data(), static_cast<size_t>(num_tokens) * element_bytes);
}

Blob MakeState(const ModelInfo& info, ggml_type type, bool transposed, uint32_t magic, uint32_t num_streams,
               const Piece& piece) {
  Blob blob;
  blob.Put(magic);
  blob.Put(static_cast<int32_t>(piece.sequence));
  blob.Put(num_streams);
  blob.Put(static_cast<uint32_t>(piece.num_tokens));
  for (int i = 0; i < piece.num_tokens; ++i) {
    blob.Put(static_cast<int32_t>(piece.first_position + i));
    blob.Put(uint32_t{1});
    blob.Put(static_cast<int32_t>(piece.sequence));
  }
  blob.Put(static_cast<uint32_t>(transposed));
  blob.Put(static_cast<uint32_t>(info.layers.size()));
  uint32_t seed = 1;
  for (const LayerShape& layer : info.layers) {
    PutRows(blob, type, static_cast<size_t>(layer.num_kv_heads * layer.key_dim), piece.num_tokens, seed++);
  }
  for (const LayerShape& layer : info.layers) {
    const auto width = static_cast<size_t>(layer.num_kv_heads * layer.value_dim);
    transposed ? PutColumns(blob, type, width, piece.num_tokens, seed++)
               : PutRows(blob, type, width, piece.num_tokens, seed++);
  }
  for (uint32_t stream = 1; stream < num_streams; ++stream) blob.Put(uint32_t{0});
  return blob;
}

}  // namespace

Status PlainContext::FillForBenchmark(int sequence, int num_tokens) {
  Private& self = *private_;
  if (!self.options.for_benchmark || sequence < 0 || sequence >= self.options.max_sequences) {
    return InvalidArgument("this context of libllama was not made to be filled");
  }
  for (const LayerShape& layer : self.info.layers) {
    if (layer.kind != LayerKind::kGlobal || layer.value_in_key) {
      return Unsupported("a synthetic cache is made for models whose layers all attend over everything");
    }
  }
  llama_context* context = self.context.get();
  llama_memory_t memory = llama_get_memory(context);
  std::vector<uint8_t> empty(llama_state_seq_get_size(context, sequence));
  if (empty.size() < sizeof(uint32_t) || llama_state_seq_get_data(context, empty.data(), empty.size(), sequence) == 0) {
    return IoError("libllama gives no state of an empty sequence");
  }
  uint32_t magic = 0;
  std::memcpy(&magic, empty.data(), sizeof magic);
  const bool streams = self.options.separate_streams && self.options.max_sequences > 1;
  const llama_seq_id spare = streams ? sequence : self.options.max_sequences;
  const int piece_tokens = streams ? num_tokens : kPieceTokens;
  int32_t& position = self.next_position[static_cast<size_t>(sequence)];
  for (int done = 0; done < num_tokens;) {
    const Piece piece{
        .sequence = spare, .first_position = position, .num_tokens = std::min(piece_tokens, num_tokens - done)};
    const Blob state = MakeState(self.info, self.type, !self.options.flash_attention, magic,
                                 streams ? static_cast<uint32_t>(self.options.max_sequences) : 1, piece);
    if (llama_state_seq_set_data(context, state.data().data(), state.data().size(), spare) == 0) {
      return IoError("libllama does not take a synthetic cache of " + std::to_string(num_tokens) + " tokens");
    }
    if (!streams) {
      llama_memory_seq_cp(memory, spare, sequence, -1, -1);
      llama_memory_seq_rm(memory, spare, -1, -1);
    }
    position += piece.num_tokens;
    done += piece.num_tokens;
  }
  return {};
}

}  // namespace pith
