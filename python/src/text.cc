// Samplers and generators.

#include <cstddef>
#include <cstring>

#include "common.h"
#include "model.h"

namespace pith_python {
namespace {

struct Field {
  const char* name;
  enum { kFloat, kInt, kUnsigned, kBool } kind;
  size_t offset;
};

#define PITH_FIELD(kind, name) \
  { #name, Field::kind, offsetof(pith_sampler_options, name) }
constexpr Field kFields[] = {
    PITH_FIELD(kFloat, temperature),
    PITH_FIELD(kFloat, dynatemp_range),
    PITH_FIELD(kFloat, dynatemp_exponent),
    PITH_FIELD(kInt, top_k),
    PITH_FIELD(kFloat, top_p),
    PITH_FIELD(kFloat, min_p),
    PITH_FIELD(kFloat, typical_p),
    PITH_FIELD(kFloat, top_n_sigma),
    PITH_FIELD(kFloat, xtc_probability),
    PITH_FIELD(kFloat, xtc_threshold),
    PITH_FIELD(kInt, repeat_last_n),
    PITH_FIELD(kFloat, repeat_penalty),
    PITH_FIELD(kFloat, presence_penalty),
    PITH_FIELD(kFloat, frequency_penalty),
    PITH_FIELD(kFloat, dry_multiplier),
    PITH_FIELD(kFloat, dry_base),
    PITH_FIELD(kInt, dry_allowed_length),
    PITH_FIELD(kInt, dry_last_n),
    PITH_FIELD(kInt, mirostat),
    PITH_FIELD(kFloat, mirostat_tau),
    PITH_FIELD(kFloat, mirostat_eta),
    PITH_FIELD(kUnsigned, seed),
    PITH_FIELD(kBool, ignore_eos),
};
#undef PITH_FIELD

template <typename T>
void Put(pith_sampler_options& options, size_t offset, const nb::handle value) {
  const auto number = nb::cast<T>(value);
  std::memcpy(reinterpret_cast<std::byte*>(&options) + offset, &number, sizeof number);
}

void PutField(pith_sampler_options& options, const Field& field, const nb::handle value) {
  switch (field.kind) {
    case Field::kFloat:
      return Put<float>(options, field.offset, value);
    case Field::kInt:
      return Put<int32_t>(options, field.offset, value);
    case Field::kUnsigned:
      return Put<uint32_t>(options, field.offset, value);
    case Field::kBool:
      return Put<bool>(options, field.offset, value);
  }
}

class Sampler {
 public:
  Sampler(const Model& model, const nb::dict& options) : model_(model.box) {
    CheckMayCall();
    const SamplerSpec spec(*model_, options);
    Check(pith_sampler_new(model_->handle, spec.get(), &handle_));
  }
  ~Sampler() {
    if (!IsForkedChild()) pith_sampler_free(handle_);
  }
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;

  // Under a lock of its own, as another thread may hold it, too.
  int32_t Sample(const nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>& logits) {
    CheckMayCall();
    const nb::gil_scoped_release released;
    const std::lock_guard lock(mutex_);
    int32_t token = -1;
    Check(pith_sampler_sample(handle_, logits.data(), logits.shape(0), &token));
    return token;
  }
  void Reset() {
    CheckMayCall();
    const nb::gil_scoped_release released;
    const std::lock_guard lock(mutex_);
    pith_sampler_reset(handle_);
  }
  pith_sampler* handle() const { return handle_; }

 private:
  std::shared_ptr<ModelBox> model_;
  std::mutex mutex_;
  pith_sampler* handle_ = nullptr;
};

// Logits to text, with a sampler of its own, over one sequence.
class Generator {
 public:
  Generator(const Model& model, const nb::dict& sampling, int max_tokens, int num_logprobs,
            const std::vector<std::string>& stops)
      : sampler_(model, sampling) {
    const std::vector<const char*> pointers = Pointers(stops);
    auto own = Sized<pith_generator_options>();
    own.max_tokens = max_tokens;
    own.num_logprobs = num_logprobs;
    own.stops = pointers.data();
    own.num_stops = pointers.size();
    Check(pith_generator_new(model.box->handle, sampler_.handle(), &own, &handle_));
  }
  ~Generator() {
    if (!IsForkedChild()) pith_generator_free(handle_);
  }
  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;

  // Samples after what the sequence has read last; (token or -1, text to show). decode: reads the token, too.
  nb::tuple Next(Sequence& sequence, bool decode) {
    int32_t token = -1;
    std::string shown;
    RunLong(
        sequence.box(), [&sequence] { sequence.IfRunning(pith_sequence_cancel); },
        [&]() -> pith_status {
          pith_sequence* const own = sequence.Get();
          size_t count = 0, length = 0;
          const char* text = "";
          const float* logits = LogitsOf(sequence, count);
          const pith_status status = pith_generator_next(handle_, logits, count, &token, &text, &length);
          if (status != PITH_OK) return status;
          shown.assign(text, length);
          if (!decode || token < 0) return PITH_OK;
          const pith_status decoded = pith_sequence_decode(own, token);
          KeepLogits(sequence);
          return decoded;
        });
    return nb::make_tuple(token, nb::str(shown.data(), shown.size()));
  }
  bool is_done() const { return pith_generator_done(handle_); }
  void Finish(int reason) { pith_generator_finish(handle_, reason); }
  nb::dict Get() const {
    auto generation = Sized<pith_generation>();
    Check(pith_generator_get(handle_, &generation));
    return GenerationOf(generation);
  }

 private:
  Sampler sampler_;
  pith_generator* handle_ = nullptr;
};

}  // namespace

SamplerSpec::SamplerSpec(const ModelBox& model, const nb::dict& given) {
  Check(pith_sampler_options_init(model.handle, &options_, sizeof options_));
  for (const auto& [key, value] : given) {
    const auto name = nb::cast<std::string>(key);
    if (value.is_none()) continue;
    bool known = true;
    if (name == "order") {
      order_ = nb::cast<std::string>(value);
      options_.order = order_.c_str();
    } else if (name == "grammar") {
      grammar_ = nb::cast<std::string>(value);
      options_.grammar = grammar_.c_str();
    } else if (name == "json_schema") {
      json_schema_ = nb::cast<std::string>(value);
      options_.json_schema = json_schema_.c_str();
    } else if (name == "logit_bias") {
      for (const auto& [token, bias] : nb::cast<nb::dict>(value)) {
        bias_tokens_.push_back(nb::cast<int32_t>(nb::int_(token)));
        biases_.push_back(nb::cast<float>(nb::float_(bias)));
      }
      options_.bias_tokens = bias_tokens_.data();
      options_.biases = biases_.data();
      options_.num_biases = biases_.size();
    } else {
      known = false;
      for (const Field& field : kFields) {
        if (name != field.name) continue;
        PutField(options_, field, value);
        known = true;
      }
    }
    if (!known) throw Failure(PITH_ERROR_INVALID_ARGUMENT, "there is no sampling option \"" + name + "\"");
  }
}

nb::dict GenerationOf(const pith_generation& from) {
  nb::dict out;
  out["text"] = nb::str(from.text, from.text_length);
  out["tokens"] = std::vector<int32_t>(from.tokens, from.tokens + from.num_tokens);
  out["prompt_tokens"] = from.prompt_tokens;
  out["stop"] = pith_stop_name(from.stop);
  out["stop_message"] = from.stop_message;
  out["first_token_seconds"] = from.first_token_seconds;
  out["seconds"] = from.seconds;
  nb::list logprobs, top;
  for (size_t i = 0; from.logprobs != nullptr && i < from.num_tokens; ++i) {
    logprobs.append(from.logprobs[i]);
    nb::list likeliest;
    for (size_t j = i * from.num_top; j < (i + 1) * from.num_top; ++j) {
      likeliest.append(nb::make_tuple(from.top_tokens[j], from.top_logprobs[j]));
    }
    top.append(likeliest);
  }
  out["logprobs"] = logprobs;
  out["top"] = top;
  return out;
}

void AddText(nb::module_& module) {
  nb::class_<Sampler>(module, "Sampler")
      .def(nb::init<const Model&, const nb::dict&>(), nb::arg("model"), nb::arg("options"))
      .def("sample", &Sampler::Sample, nb::arg("logits"))
      .def("reset", &Sampler::Reset);
  nb::class_<Generator>(module, "Generator")
      .def(nb::init<const Model&, const nb::dict&, int, int, const std::vector<std::string>&>(), nb::arg("model"),
           nb::arg("sampling"), nb::arg("max_tokens"), nb::arg("num_logprobs"), nb::arg("stops"))
      .def("next", &Generator::Next, nb::arg("sequence"), nb::arg("decode"))
      .def("is_done", &Generator::is_done)
      .def("finish", &Generator::Finish, nb::arg("reason"))
      .def("get", &Generator::Get);
}

}  // namespace pith_python
