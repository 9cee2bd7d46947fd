// Conversations.

#include "common.h"
#include "model.h"

namespace pith_python {
namespace {

std::unique_ptr<Talk> NewTalk(const Engine& engine, const std::optional<std::string>& system, bool plain_control_tokens,
                              const nb::dict& sequence) {
  const SequenceSpec spec = SequenceSpecOf(sequence);
  pith_conversation* made = nullptr;
  {
    const Turn turn(*engine.box);
    Check(WithSequenceOptions(spec, [&](const pith_sequence_options* of_sequence) {
      auto own = Sized<pith_conversation_options>();
      own.system = OrNull(system);
      own.plain_control_tokens = plain_control_tokens;
      own.sequence = of_sequence;
      return pith_conversation_new(engine.box->handle(), &own, &made);
    }));
  }
  return std::make_unique<Talk>(engine.box, made);
}

std::unique_ptr<Talk> ForkOf(const Talk& talk) {
  pith_conversation* fork = nullptr;
  {
    const Turn turn(talk.box());
    Check(pith_conversation_fork(talk.Get(), &fork));
  }
  return std::make_unique<Talk>(talk.shared_box(), fork);
}

struct Receiver {
  const nb::object* on_text;
};

bool OnText(void* user, const char* text, size_t length) {
  const nb::gil_scoped_acquire acquired;
  const InCallback marked;
  try {
    const nb::object go_on = (*static_cast<Receiver*>(user)->on_text)(nb::str(text, length));
    return go_on.is_none() || nb::cast<bool>(nb::bool_(go_on));
  } catch (nb::python_error& error) {
    KeepException(std::move(error));
    return false;
  }
}

nb::dict Generate(Talk& talk, const std::optional<std::string>& message, const std::optional<std::string>& text,
                  int max_tokens, int num_logprobs, const std::vector<std::string>& stops, const nb::dict& sampling,
                  const nb::object& on_text) {
  CheckMayCall();
  const SamplerSpec spec(*talk.box().model(), sampling);
  const std::vector<const char*> pointers = Pointers(stops);
  Receiver receiver{&on_text};
  auto own = Sized<pith_generate_options>();
  own.message = OrNull(message);
  own.text = OrNull(text);
  own.max_tokens = max_tokens;
  own.num_logprobs = num_logprobs;
  own.stops = pointers.data();
  own.num_stops = pointers.size();
  own.sampling = spec.get();
  own.on_text = on_text.is_none() ? nullptr : OnText;
  own.user = &receiver;
  auto generation = Sized<pith_generation>();
  // What the generation points to lives until the next one, which another thread may begin: it is copied in the turn.
  nb::dict out;
  ForgetException();
  RunLong(
      talk.box(), [&talk] { talk.IfRunning(pith_conversation_cancel); },
      [&]() -> pith_status {
        const pith_status status = pith_conversation_generate(talk.Get(), &own, &generation);
        if (status != PITH_OK) return status;
        const nb::gil_scoped_acquire acquired;
        out = GenerationOf(generation);
        return PITH_OK;
      });
  if (HasException()) Raise(PITH_ERROR_CANCELLED, "on_text failed");
  return out;
}

void Queue(const Talk& talk, const std::string& text, bool is_message) {
  const Turn turn(talk.box());
  Check(is_message ? pith_conversation_say(talk.Get(), text.c_str())
                   : pith_conversation_append(talk.Get(), text.c_str()));
}

nb::bytes SaveToBytes(const Talk& talk) {
  std::string bytes;
  {
    const Turn turn(talk.box());
    Check(pith_conversation_save_to(talk.Get(), AppendBytes, &bytes));
  }
  return nb::bytes(bytes.data(), bytes.size());
}

nb::dict StatsOfTalk(const Talk& talk) {
  auto stats = Sized<pith_sequence_stats>();
  {
    const Turn turn(talk.box());
    Check(pith_sequence_get_stats(pith_conversation_sequence(talk.Get()), &stats));
  }
  return StatsOf(stats);
}

double Compress(Talk& talk, const std::optional<std::string>& recipe, double keep) {
  double kept = 0;
  RunLong(
      talk.box(), [] {},
      [&] { return pith_sequence_compress(pith_conversation_sequence(talk.Get()), OrNull(recipe), keep, &kept); });
  return kept;
}

}  // namespace

void AddConversation(nb::module_& module) {
  nb::class_<Talk>(module, "Conversation")
      .def("fork", ForkOf)
      .def("close", &Talk::Close)
      .def("is_closed", &Talk::is_closed)
      .def("queue", Queue, nb::arg("text"), nb::arg("is_message"))
      .def("read",
           [](Talk& talk) {
             RunLong(
                 talk.box(), [&talk] { talk.IfRunning(pith_conversation_cancel); },
                 [&] { return pith_conversation_read(talk.Get(), nullptr, nullptr); });
           })
      .def("generate", Generate, nb::arg("message").none(), nb::arg("text").none(), nb::arg("max_tokens"),
           nb::arg("num_logprobs"), nb::arg("stops"), nb::arg("sampling"), nb::arg("on_text").none())
      .def("reset",
           [](const Talk& talk) {
             const Turn turn(talk.box());
             talk.box().epoch.fetch_add(1);
             Check(pith_conversation_reset(talk.Get()));
           })
      .def("cancel", [](Talk& talk) { talk.IfRunning(pith_conversation_cancel); })
      .def("num_pending",
           [](const Talk& talk) {
             const Turn turn(talk.box());
             return pith_conversation_num_pending(talk.Get());
           })
      .def("num_tokens",
           [](const Talk& talk) {
             const Turn turn(talk.box());
             return pith_sequence_num_tokens(pith_conversation_sequence(talk.Get()));
           })
      .def("note",
           [](const Talk& talk) {
             const Turn turn(talk.box());
             return std::string(pith_conversation_note(talk.Get()));
           })
      .def("stats", StatsOfTalk)
      .def("compress", Compress, nb::arg("recipe").none(), nb::arg("keep"))
      .def("save",
           [](const Talk& talk, const std::string& path) {
             const Turn turn(talk.box());
             Check(pith_conversation_save(talk.Get(), path.c_str()));
           })
      .def("save_to_bytes", SaveToBytes)
      .def("restore",
           [](const Talk& talk, const std::string& path) {
             const Turn turn(talk.box());
             talk.box().epoch.fetch_add(1);
             Check(pith_conversation_restore(talk.Get(), path.c_str()));
           })
      .def("restore_from_bytes", [](const Talk& talk, const nb::bytes& saved) {
        Rest rest{saved.c_str(), saved.size()};
        const Turn turn(talk.box());
        talk.box().epoch.fetch_add(1);
        Check(pith_conversation_restore_from(talk.Get(), TakeBytes, &rest));
      });

  module.def(
      "conversation",
      [](const Engine& engine, const std::optional<std::string>& system, bool plain_control_tokens,
         const nb::dict& sequence) { return NewTalk(engine, system, plain_control_tokens, sequence); },
      nb::arg("engine"), nb::arg("system").none(), nb::arg("plain_control_tokens"), nb::arg("sequence"));
}

}  // namespace pith_python
