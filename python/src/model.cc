// Models: loading, tokens, templates.
#include "model.h"

#include "common.h"

namespace pith_python {
namespace {

struct LoadOptions {
  int threads;
  int gpu_layers;
  std::optional<std::string> chat_template;
  std::vector<std::string> lora_paths;
  std::vector<float> lora_scales;
  bool libllama_products;
  bool trusted;
  pith_model_use use;
  std::optional<std::string> rope;
  std::vector<std::string> overrides;
};

// A call without the GIL. call: () -> pith_status.
template <typename Call>
void RunFree(const Call& call) {
  pith_status status = PITH_OK;
  std::string message;
  {
    const nb::gil_scoped_release released;
    status = call();
    if (status != PITH_OK) message = pith_last_error();
  }
  if (status != PITH_OK) throw Failure(status, message);
}

std::shared_ptr<ModelBox> Load(const std::string& path, const LoadOptions& options) {
  CheckMayCall();
  NoteUse();
  const std::vector<const char*> loras = Pointers(options.lora_paths);
  auto own = Sized<pith_model_options>();
  own.num_threads = options.threads;
  own.num_gpu_layers = options.gpu_layers;
  own.chat_template = OrNull(options.chat_template);
  own.lora_paths = loras.data();
  own.lora_scales = options.lora_scales.empty() ? nullptr : options.lora_scales.data();
  own.num_loras = loras.size();
  own.libllama_products = options.libllama_products;
  own.trusted = options.trusted;
  own.use = options.use;
  const std::vector<const char*> overrides = Pointers(options.overrides);
  own.rope = OrNull(options.rope);
  own.overrides = overrides.data();
  own.num_overrides = overrides.size();
  std::atomic<bool> stop{false};
  own.progress = [](void* user, uint64_t, uint64_t) { return !static_cast<std::atomic<bool>*>(user)->load(); };
  own.progress_user = &stop;
  pith_model* model = nullptr;
  pith_status status = PITH_OK;
  std::string message;
  bool interrupted = false;
  {
    const nb::gil_scoped_release released;
    InterruptWatch watch([&stop] { stop.store(true); });
    status = pith_model_load(path.c_str(), &own, &model);
    if (status != PITH_OK) message = pith_last_error();
    interrupted = watch.was_interrupted();
  }
  std::shared_ptr<ModelBox> box = model == nullptr ? nullptr : std::make_shared<ModelBox>(model);
  if (interrupted && PyErr_CheckSignals() != 0) throw nb::python_error();
  if (status != PITH_OK) throw Failure(status, message);
  return box;
}

nb::dict InfoOf(const Model& model) {
  CheckMayCall();
  auto info = Sized<pith_model_info>();
  Check(pith_model_get_info(model.box->handle, &info));
  nb::dict out;
  out["num_layers"] = info.num_layers;
  out["num_vocab"] = info.num_vocab;
  out["trained_ctx"] = info.trained_ctx;
  out["window"] = info.window;
  out["file_bytes"] = info.file_bytes;
  out["num_params"] = info.num_params;
  out["recurrent_bytes"] = info.recurrent_bytes;
  out["hybrid"] = info.hybrid;
  out["has_chat_template"] = info.has_chat_template;
  out["architecture"] = info.architecture;
  out["description"] = info.description;
  out["num_embd"] = info.num_embd;
  out["bos_token"] = info.bos_token;
  out["eos_token"] = info.eos_token;
  out["newline_token"] = info.newline_token;
  out["adds_bos"] = info.adds_bos;
  out["chat_template"] = info.chat_template;
  return out;
}

nb::dict MetadataOf(const Model& model) {
  CheckMayCall();
  std::vector<std::pair<std::string, std::string>> all;
  pith_model_list_metadata(
      model.box->handle,
      [](void* user, const char* key, const char* value) {
        static_cast<std::vector<std::pair<std::string, std::string>>*>(user)->emplace_back(key, value);
      },
      &all);
  nb::dict out;
  for (const auto& [key, value] : all) {
    out[key.c_str()] = nb::steal(PyUnicode_DecodeUTF8(value.data(), static_cast<Py_ssize_t>(value.size()), "replace"));
  }
  return out;
}

// tokenize: (text, length, tokens, capacity, count) -> pith_status.
template <typename Call>
std::vector<int32_t> TokensOf(const nb::bytes& text, const Call& tokenize) {
  CheckMayCall();
  const char* data = text.c_str();
  const size_t length = text.size();
  std::vector<int32_t> tokens(length + 8);
  size_t count = 0;
  const auto fill = [&] {
    RunFree([&] { return tokenize(data, length, tokens.data(), tokens.size(), &count); });
    const bool was_cut = count > tokens.size();
    tokens.resize(count);
    return was_cut;
  };
  if (fill()) fill();
  return tokens;
}

std::vector<int32_t> Tokenize(const Model& model, const nb::bytes& text, bool begins, bool special) {
  return TokensOf(text, [&](const char* data, size_t length, int32_t* tokens, size_t capacity, size_t* count) {
    return pith_tokenize(model.box->handle, data, length, begins, special, tokens, capacity, count);
  });
}

std::vector<int32_t> TokenizeWhole(const Model& model, const nb::bytes& text) {
  return TokensOf(text, [&](const char* data, size_t length, int32_t* tokens, size_t capacity, size_t* count) {
    return pith_tokenize_whole(model.box->handle, data, length, tokens, capacity, count);
  });
}

// Texts take turns.
class Embedder {
 public:
  Embedder(const Model& model, int threads) : model_(model.box) {
    CheckMayCall();
    NoteUse();
    RunFree([&] { return pith_embedder_new(model_->handle, threads, &handle_); });
  }
  ~Embedder() {
    if (!IsForkedChild()) pith_embedder_free(handle_);
  }
  Embedder(const Embedder&) = delete;
  Embedder& operator=(const Embedder&) = delete;

  size_t num_ctx() const { return pith_embedder_num_ctx(handle_); }
  void Embed(const TokenArray& tokens, std::optional<FloatRows> rows, std::optional<FloatRow> pooled) {
    CheckMayCall();
    auto info = Sized<pith_model_info>();
    Check(pith_model_get_info(model_->handle, &info));
    const auto width = static_cast<size_t>(info.num_embd);
    const bool rows_fit = !rows || (rows->shape(0) == tokens.size() && rows->shape(1) == width);
    if (!rows_fit || (pooled && pooled->size() != width)) {
      throw Failure(PITH_ERROR_INVALID_ARGUMENT, "the arrays for embeddings have the wrong shape");
    }
    RunFree([&] {
      const std::lock_guard lock(mutex_);
      return pith_embedder_embed(handle_, tokens.data(), tokens.size(), rows ? rows->data() : nullptr,
                                 pooled ? pooled->data() : nullptr);
    });
  }

 private:
  std::shared_ptr<ModelBox> model_;
  pith_embedder* handle_ = nullptr;
  std::mutex mutex_;
};

nb::bytes PieceOf(const Model& model, int32_t token) {
  char few[64];
  const size_t length = pith_token_piece(model.box->handle, token, few, sizeof few);
  if (length < sizeof few) return nb::bytes(few, length);
  std::string piece(length + 1, '\0');
  pith_token_piece(model.box->handle, token, piece.data(), piece.size());
  return nb::bytes(piece.data(), length);
}

// What writes a text into a buffer, as snprintf: once for its length, once more for itself.
template <typename Write>
std::string TextOf(const Write& write) {
  size_t length = 0;
  Check(write(nullptr, 0, &length));
  std::string text(length, '\0');
  Check(write(text.data(), length + 1, &length));
  return text;
}

std::string Render(const Model& model, const std::string& messages, const std::optional<std::string>& tools,
                   bool opens_answer) {
  CheckMayCall();
  return TextOf([&](char* buffer, size_t capacity, size_t* length) {
    return pith_apply_template_json(model.box->handle, messages.c_str(), OrNull(tools), opens_answer, buffer, capacity,
                                    length);
  });
}

}  // namespace

void AddModel(nb::module_& module) {
  nb::class_<Model>(module, "Model")
      .def(
          "__init__",
          [](Model* self, const std::string& path, int threads, int gpu_layers,
             std::optional<std::string> chat_template, std::vector<std::string> lora_paths,
             std::vector<float> lora_scales, bool libllama_products, bool trusted, int use,
             std::optional<std::string> rope, std::vector<std::string> overrides) {
            if (!lora_scales.empty() && lora_scales.size() != lora_paths.size()) {
              throw Failure(PITH_ERROR_INVALID_ARGUMENT, "there must be a strength for each adapter, or none at all");
            }
            new (self) Model{Load(path, {threads, gpu_layers, std::move(chat_template), std::move(lora_paths),
                                         std::move(lora_scales), libllama_products, trusted, use, std::move(rope),
                                         std::move(overrides)})};
          },
          nb::arg("path"), nb::arg("threads"), nb::arg("gpu_layers"), nb::arg("chat_template").none(),
          nb::arg("lora_paths"), nb::arg("lora_scales"), nb::arg("libllama_products"), nb::arg("trusted"),
          nb::arg("use"), nb::arg("rope").none(), nb::arg("overrides"))
      .def("info", InfoOf)
      .def("metadata", MetadataOf)
      .def("tokenize", Tokenize, nb::arg("text"), nb::arg("begins"), nb::arg("special"))
      .def("tokenize_whole", TokenizeWhole, nb::arg("text"))
      .def("piece", PieceOf, nb::arg("token"))
      .def(
          "plain_piece",
          [](const Model& model, int32_t token) {
            return pith_token_is_control(model.box->handle, token) ? nb::bytes("", 0) : PieceOf(model, token);
          },
          nb::arg("token"))
      .def(
          "ends", [](const Model& model, int32_t token) { return pith_token_ends(model.box->handle, token); },
          nb::arg("token"))
      .def("render", Render, nb::arg("messages_json"), nb::arg("tools_json").none(), nb::arg("opens_answer"));

  nb::class_<Embedder>(module, "Embedder")
      .def(nb::init<const Model&, int>(), nb::arg("model"), nb::arg("threads"))
      .def("num_ctx", &Embedder::num_ctx)
      .def("embed", &Embedder::Embed, nb::arg("tokens"), nb::arg("rows").none(), nb::arg("pooled").none());

  module.def(
      "grammar_of_schema",
      [](const std::string& schema) {
        return TextOf([&](char* buffer, size_t capacity, size_t* length) {
          return pith_grammar_of_schema(schema.c_str(), buffer, capacity, length);
        });
      },
      nb::arg("schema"));
  module.def(
      "normalise_recipe",
      [](const std::string& recipe) {
        return TextOf([&](char* buffer, size_t capacity, size_t* length) {
          return pith_recipe_normalise(recipe.c_str(), buffer, capacity, length);
        });
      },
      nb::arg("recipe"));
  module.def("list_recipes", [] {
    nb::list all;
    pith_list_recipes(
        [](void* user, const pith_recipe_info* info) {
          nb::dict one;
          one["name"] = info->name;
          one["paper"] = info->paper;
          one["summary"] = info->summary;
          one["stages"] = info->stages;
          one["needs"] = info->needs;
          one["cost"] = info->cost;
          one["when"] = info->when;
          one["good_for"] = info->good_for;
          one["parameters"] = info->parameters;
          static_cast<nb::list*>(user)->append(one);
        },
        &all);
    return all;
  });
  module.def("list_stages", [] {
    nb::list all;
    pith_list_stages(
        [](void* user, const pith_stage_info* info) {
          nb::dict one;
          one["kind"] = info->kind;
          one["name"] = info->name;
          one["paper"] = info->paper;
          one["summary"] = info->summary;
          one["parameters"] = info->parameters;
          static_cast<nb::list*>(user)->append(one);
        },
        &all);
    return all;
  });
  module.def(
      "set_log",
      [](nb::object callback) {
        static nb::object* const kept = new nb::object;
        *kept = callback.is_none() ? nb::object() : callback;
        if (callback.is_none()) {
          pith_set_log(nullptr, nullptr);
          return;
        }
        pith_set_log(
            [](void*, int32_t level, const char* text) {
              const nb::gil_scoped_acquire acquired;
              const InCallback marked;
              try {
                if (kept->is_valid()) (*kept)(level, nb::str(text));
              } catch (nb::python_error& error) {
                error.discard_as_unraisable("pith.set_log");
              }
            },
            nullptr);
      },
      nb::arg("callback").none());
}

}  // namespace pith_python
