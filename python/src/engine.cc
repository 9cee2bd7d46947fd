// Engines and sequences.

#include <cstring>

#include "common.h"
#include "model.h"

namespace pith_python {
namespace {

struct EngineSpec {
  uint64_t budget_bytes;
  int num_ctx;
  int threads;
  int max_sequences;
  int block_tokens;
  std::optional<std::string> recipe;
  uint64_t seed;
  bool fixed_threads;
  std::optional<std::string> save_format;
};

std::shared_ptr<EngineBox> NewEngine(const Model& model, const EngineSpec& spec) {
  CheckMayCall();
  auto own = Sized<pith_engine_options>();
  own.budget_bytes = spec.budget_bytes;
  own.num_ctx = spec.num_ctx;
  own.num_threads = spec.threads;
  own.max_sequences = spec.max_sequences;
  own.block_tokens = spec.block_tokens;
  own.recipe = OrNull(spec.recipe);
  own.seed = spec.seed;
  own.fixed_threads = spec.fixed_threads;
  own.save_format = OrNull(spec.save_format);
  const nb::gil_scoped_release released;
  pith_engine* engine = nullptr;
  Check(pith_engine_new(model.box->handle, &own, &engine));
  return std::make_shared<EngineBox>(model.box, engine, spec.max_sequences > 1);
}

nb::dict EngineStats(const Engine& engine) {
  auto stats = Sized<pith_engine_stats>();
  {
    const Turn turn(*engine.box);
    Check(pith_engine_get_stats(engine.box->handle(), &stats));
  }
  nb::dict out;
  out["budget_bytes"] = stats.budget_bytes;
  out["used_bytes"] = stats.used_bytes;
  out["peak_bytes"] = stats.peak_bytes;
  out["block_bytes"] = stats.block_bytes;
  out["page_bytes"] = stats.page_bytes;
  out["table_bytes"] = stats.table_bytes;
  out["recurrent_bytes"] = stats.recurrent_bytes;
  out["promised_bytes"] = stats.promised_bytes;
  out["entries"] = stats.entries;
  out["entries_seen"] = stats.entries_seen;
  out["kept_fraction"] = stats.kept_fraction;
  out["block_tokens"] = stats.block_tokens;
  out["decode_threads"] = stats.decode_threads;
  out["attention_seconds"] = stats.attention_seconds;
  out["policy_seconds"] = stats.policy_seconds;
  out["total_seconds"] = stats.total_seconds;
  return out;
}

nb::dict Admit(const Engine& engine, const nb::dict& options, size_t num_tokens) {
  const SequenceSpec spec = SequenceSpecOf(options);
  auto found = Sized<pith_admission>();
  {
    const Turn turn(*engine.box);
    Check(WithSequenceOptions(spec, [&](const pith_sequence_options* own) {
      return pith_engine_admit(engine.box->handle(), own, num_tokens, &found);
    }));
  }
  nb::dict out;
  out["steady_bytes"] = found.steady_bytes;
  out["step_bytes"] = found.step_bytes;
  out["free_bytes"] = found.free_bytes;
  out["missing_bytes"] = found.missing_bytes;
  out["fits"] = found.fits;
  return out;
}

struct StepPart {
  Sequence* sequence;
  TokenArray tokens;
  bool pin;
  nb::object all_logits;      // None, or a writable float32 array [tokens, vocab]
  nb::object all_embeddings;  // the same of [tokens, hidden]
};

using Rows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Its memory, which must have so many rows.
float* RowsOf(const nb::object& array, size_t rows, size_t columns, const char* what, std::vector<Rows>& kept) {
  if (array.is_none()) return nullptr;
  kept.push_back(nb::cast<Rows>(array));
  if (kept.back().shape(0) == rows && kept.back().shape(1) == columns) return kept.back().data();
  throw Failure(PITH_ERROR_INVALID_ARGUMENT, std::string("place for ") + what + " must be float32 of the shape (" +
                                                 std::to_string(rows) + ", " + std::to_string(columns) + ")");
}

// items: (sequence, tokens, pin, all_logits, all_embeddings). Returns a status and a sentence of each.
nb::list Step(const Engine& engine, const nb::list& items) {
  std::vector<pith_step_item> own;
  std::vector<StepPart> parts;
  std::vector<Rows> rows;
  auto info = Sized<pith_model_info>();
  Check(pith_model_get_info(engine.box->model()->handle, &info));
  for (const nb::handle item : items) {
    const auto tuple = nb::cast<nb::tuple>(item);
    parts.push_back({nb::cast<Sequence*>(tuple[0]), nb::cast<TokenArray>(tuple[1]), nb::cast<bool>(tuple[2]),
                     nb::object(tuple[3]), nb::object(tuple[4])});
    const StepPart& part = parts.back();
    auto one = Sized<pith_step_item>();
    one.tokens = part.tokens.data();
    one.num_tokens = part.tokens.shape(0);
    one.pin = part.pin;
    one.all_logits = RowsOf(part.all_logits, one.num_tokens, static_cast<size_t>(info.num_vocab), "logits", rows);
    one.all_embeddings =
        RowsOf(part.all_embeddings, one.num_tokens, static_cast<size_t>(info.num_embd), "embeddings", rows);
    own.push_back(one);
  }
  std::vector<pith_status> statuses(own.size(), PITH_OK);
  std::vector<std::string> messages(own.size());
  bool all_refused = false;
  RunLong(
      *engine.box,
      [&parts] {
        for (StepPart& part : parts) part.sequence->IfRunning(pith_sequence_cancel);
      },
      [&] {
        for (size_t i = 0; i < own.size(); ++i) own[i].sequence = parts[i].sequence->Get();
        const pith_status status = pith_step(engine.box->handle(), own.data(), own.size(), statuses.data());
        for (size_t i = 0; i < own.size(); ++i) messages[i] = pith_step_message(engine.box->handle(), i);
        for (StepPart& part : parts) KeepLogits(*part.sequence);
        all_refused = status != PITH_OK && own.empty();
        return all_refused ? status : PITH_OK;
      });
  nb::list out;
  for (size_t i = 0; i < own.size(); ++i) {
    out.append(nb::make_tuple(
        statuses[i] == PITH_OK ? nb::object(nb::none()) : nb::object(nb::str(pith_status_name(statuses[i]))),
        messages[i]));
  }
  return out;
}

std::unique_ptr<Sequence> NewSequence(const Engine& engine, const nb::dict& options) {
  const SequenceSpec spec = SequenceSpecOf(options);
  pith_sequence* sequence = nullptr;
  {
    const Turn turn(*engine.box);
    Check(WithSequenceOptions(spec, [&](const pith_sequence_options* own) {
      return pith_sequence_new(engine.box->handle(), own, &sequence);
    }));
  }
  return std::make_unique<Sequence>(engine.box, sequence);
}

std::unique_ptr<Sequence> ForkOf(const Sequence& sequence) {
  pith_sequence* fork = nullptr;
  std::vector<float> logits;
  {
    const Turn turn(sequence.box());
    Check(pith_sequence_fork(sequence.Get(), &fork));
    size_t count = 0;
    const float* own = LogitsOf(sequence, count);
    if (own != nullptr) logits.assign(own, own + count);
  }
  auto made = std::make_unique<Sequence>(sequence.shared_box(), fork);
  made->kept_logits = std::move(logits);
  return made;
}

std::unique_ptr<Sequence> RestoreSequence(const Engine& engine, const nb::dict& options,
                                          const std::optional<std::string>& path, const nb::bytes& saved) {
  const SequenceSpec spec = SequenceSpecOf(options);
  pith_sequence* sequence = nullptr;
  Rest rest{saved.c_str(), saved.size()};
  {
    const Turn turn(*engine.box);
    Check(WithSequenceOptions(spec, [&](const pith_sequence_options* own) {
      if (path) return pith_sequence_restore(engine.box->handle(), own, path->c_str(), &sequence);
      return pith_sequence_restore_from(engine.box->handle(), own, TakeBytes, &rest, &sequence);
    }));
  }
  return std::make_unique<Sequence>(engine.box, sequence);
}

void Prefill(Sequence& sequence, const TokenArray& tokens, bool pin, const nb::object& progress) {
  const pith_progress_fn on_progress = [](void* user, uint64_t done, uint64_t total) {
    const nb::gil_scoped_acquire acquired;
    const InCallback marked;
    try {
      const nb::object go_on = (*static_cast<const nb::object*>(user))(done, total);
      return go_on.is_none() || nb::cast<bool>(nb::bool_(go_on));
    } catch (nb::python_error& error) {
      KeepException(std::move(error));
      return false;
    }
  };
  RunLong(
      sequence.box(), [&sequence] { sequence.IfRunning(pith_sequence_cancel); },
      [&] {
        const pith_status status =
            pith_sequence_prefill(sequence.Get(), tokens.data(), tokens.shape(0), pin,
                                  progress.is_none() ? nullptr : on_progress, const_cast<nb::object*>(&progress));
        KeepLogits(sequence);
        return status;
      });
}

void Decode(Sequence& sequence, int32_t token) {
  RunLong(
      sequence.box(), [&sequence] { sequence.IfRunning(pith_sequence_cancel); },
      [&] {
        const pith_status status = pith_sequence_decode(sequence.Get(), token);
        KeepLogits(sequence);
        return status;
      });
}

// [vocab], read-only, of the engine's own memory, which lives as long as the array; a copy where that has gone on.
nb::object Logits(const Sequence& sequence) {
  const float* logits = nullptr;
  size_t count = 0;
  std::vector<float>* copy = nullptr;
  {
    const Turn turn(sequence.box());
    logits = LogitsOf(sequence, count);
    if (logits != nullptr && logits == sequence.kept_logits.data()) {
      copy = new std::vector<float>(sequence.kept_logits);
      logits = copy->data();
    }
  }
  if (logits == nullptr) return nb::none();
  if (copy != nullptr) {
    const nb::capsule owner(copy, [](void* own) noexcept { delete static_cast<std::vector<float>*>(own); });
    return nb::cast(FloatView(logits, {count}, owner));
  }
  auto* held = new std::shared_ptr<EngineBox>(sequence.shared_box());
  const nb::capsule owner(held, [](void* box) noexcept { delete static_cast<std::shared_ptr<EngineBox>*>(box); });
  return nb::cast(FloatView(logits, {count}, owner));
}

double Compress(Sequence& sequence, const std::optional<std::string>& recipe, double keep, int32_t from, int32_t to) {
  double kept = 0;
  RunLong(
      sequence.box(), [&sequence] { sequence.IfRunning(pith_sequence_cancel); },
      [&] {
        if (to < 0) return pith_sequence_compress(sequence.Get(), OrNull(recipe), keep, &kept);
        return pith_sequence_compress_part(sequence.Get(), OrNull(recipe), keep, from, to, &kept);
      });
  return kept;
}

nb::bytes SaveToBytes(const Sequence& sequence) {
  std::string bytes;
  {
    const Turn turn(sequence.box());
    Check(pith_sequence_save_to(sequence.Get(), AppendBytes, &bytes));
  }
  return nb::bytes(bytes.data(), bytes.size());
}

void AddSequence(nb::module_& module) {
  nb::class_<Sequence>(module, "Sequence")
      .def("fork", ForkOf)
      .def("close", &Sequence::Close)
      .def("is_closed", &Sequence::is_closed)
      .def("epoch", [](const Sequence& sequence) { return sequence.box().epoch.load(); })
      .def("prefill", Prefill, nb::arg("tokens"), nb::arg("pin"), nb::arg("progress").none())
      .def("decode", Decode, nb::arg("token"))
      .def("logits", Logits)
      .def("num_tokens",
           [](const Sequence& sequence) {
             const Turn turn(sequence.box());
             return pith_sequence_num_tokens(sequence.Get());
           })
      .def("recipe",
           [](const Sequence& sequence) {
             const Turn turn(sequence.box());
             return std::string(pith_sequence_recipe(sequence.Get()));
           })
      .def("stats",
           [](const Sequence& sequence) {
             auto stats = Sized<pith_sequence_stats>();
             {
               const Turn turn(sequence.box());
               Check(pith_sequence_get_stats(sequence.Get(), &stats));
             }
             return StatsOf(stats);
           })
      .def("compress", Compress, nb::arg("recipe").none(), nb::arg("keep"), nb::arg("begin"), nb::arg("end"))
      .def("set_budget",
           [](const Sequence& sequence, uint64_t floor_bytes, uint64_t ceiling_bytes) {
             const Turn turn(sequence.box());
             Check(pith_sequence_set_budget(sequence.Get(), floor_bytes, ceiling_bytes));
           })
      .def("rewind",
           [](Sequence& sequence, int32_t num_tokens) {
             const Turn turn(sequence.box());
             sequence.box().epoch.fetch_add(1);
             Check(pith_sequence_rewind(sequence.Get(), num_tokens));
             sequence.kept_logits.clear();
           })
      .def("rewind_target",
           [](const Sequence& sequence, int32_t num_tokens) {
             const Turn turn(sequence.box());
             return pith_sequence_rewind_target(sequence.Get(), num_tokens);
           })
      .def("cancel", [](Sequence& sequence) { sequence.IfRunning(pith_sequence_cancel); })
      .def("save",
           [](const Sequence& sequence, const std::string& path) {
             const Turn turn(sequence.box());
             Check(pith_sequence_save(sequence.Get(), path.c_str()));
           })
      .def("save_to_bytes", SaveToBytes);
}

}  // namespace

const float* LogitsOf(const Sequence& sequence, size_t& count) {
  const float* logits = pith_sequence_logits(sequence.Get(), &count);
  if (logits != nullptr || sequence.kept_logits.empty()) return logits;
  count = sequence.kept_logits.size();
  return sequence.kept_logits.data();
}

void KeepLogits(Sequence& sequence) {
  if (!sequence.box().is_shared()) return;
  size_t count = 0;
  const float* logits = pith_sequence_logits(sequence.Get(), &count);
  sequence.kept_logits.assign(logits, logits + count);
}

SequenceSpec SequenceSpecOf(const nb::dict& given) {
  SequenceSpec spec;
  for (const auto& [key, value] : given) {
    const auto name = nb::cast<std::string>(key);
    if (name == "recipe") spec.recipe = nb::cast<std::string>(value);
    if (name == "num_ctx") spec.num_ctx = nb::cast<int>(value);
    if (name == "keep_entries") spec.keep_entries = nb::cast<int>(value);
    if (name == "floor_bytes") spec.floor_bytes = nb::cast<uint64_t>(value);
    if (name == "ceiling_bytes") spec.ceiling_bytes = nb::cast<uint64_t>(value);
    if (name == "seed") spec.seed = nb::cast<uint64_t>(value);
    if (name == "compress_after") spec.compress_after = nb::cast<bool>(value);
    if (name == "later_recipes") spec.later_recipes = nb::cast<std::vector<std::string>>(value);
  }
  return spec;
}

nb::dict StatsOf(const pith_sequence_stats& stats) {
  nb::dict out;
  out["used_bytes"] = stats.used_bytes;
  out["floor_bytes"] = stats.floor_bytes;
  out["ceiling_bytes"] = stats.ceiling_bytes;
  out["entries"] = stats.entries;
  out["entries_seen"] = stats.entries_seen;
  out["kept_fraction"] = stats.kept_fraction;
  out["keep_entries"] = stats.keep_entries;
  out["num_tokens"] = stats.num_tokens;
  return out;
}

bool AppendBytes(void* user, const void* data, size_t size) {
  static_cast<std::string*>(user)->append(static_cast<const char*>(data), size);
  return true;
}

int64_t TakeBytes(void* user, void* data, size_t size) {
  auto& rest = *static_cast<Rest*>(user);
  const size_t count = std::min(size, rest.size);
  if (count > 0) std::memcpy(data, rest.data, count);
  rest.data += count;
  rest.size -= count;
  return static_cast<int64_t>(count);
}

void AddEngine(nb::module_& module) {
  nb::class_<Engine>(module, "Engine")
      .def(
          "__init__",
          [](Engine* self, const Model& model, uint64_t budget_bytes, int num_ctx, int threads, int max_sequences,
             int block_tokens, std::optional<std::string> recipe, uint64_t seed, bool fixed_threads,
             std::optional<std::string> save_format) {
            new (self) Engine{NewEngine(model, {budget_bytes, num_ctx, threads, max_sequences, block_tokens,
                                                std::move(recipe), seed, fixed_threads, std::move(save_format)})};
          },
          nb::arg("model"), nb::arg("budget_bytes"), nb::arg("num_ctx"), nb::arg("threads"), nb::arg("max_sequences"),
          nb::arg("block_tokens"), nb::arg("recipe").none(), nb::arg("seed"), nb::arg("fixed_threads"),
          nb::arg("save_format").none())
      .def("stats", EngineStats)
      .def("block_tokens",
           [](const Engine& engine) {
             const Turn turn(*engine.box);
             return pith_engine_block_tokens(engine.box->handle());
           })
      .def("admit", Admit, nb::arg("options"), nb::arg("num_tokens"))
      .def("step", Step, nb::arg("items"))
      .def("sequence", NewSequence, nb::arg("options"))
      .def("restore", RestoreSequence, nb::arg("options"), nb::arg("path").none(), nb::arg("saved"))
      .def("cancel",
           [](const Engine& engine) {
             if (engine.box->is_busy()) pith_engine_cancel(engine.box->handle());
           })
      .def("clear_cancel", [](const Engine& engine) { pith_engine_clear_cancel(engine.box->handle()); });
  AddSequence(module);
}

}  // namespace pith_python
