#include <fmt/format.h>

#include <utility>

#include "session/c_api/handles.h"

namespace pith::c_api {
namespace {

// Of the draw-th generation. splitmix64, whose outputs for neighbouring inputs have nothing in common.
uint32_t SeedOf(uint64_t seed, uint64_t draw) {
  uint64_t x = seed + (draw + 1) * 0x9e3779b97f4a7c15;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  constexpr uint32_t kRandomInLibllama = 0xffffffff;
  const auto mixed = static_cast<uint32_t>((x ^ x >> 31) >> 32);
  return mixed == kRandomInLibllama ? 0 : mixed;
}

int ContextOf(const pith_conversation& conversation) { return conversation.sequence.options.num_ctx; }

// Queues a message or a text, or leaves all as it was.
Status Queue(pith_conversation& conversation, const char* text, bool is_message) {
  Conversation before = conversation.own;
  Status status = is_message ? conversation.own.Say(text) : conversation.own.Append(text);
  const size_t num_pending = conversation.own.pending().size();
  const auto num_read = static_cast<size_t>(conversation.sequence.own->num_tokens());
  if (status && num_pending == before.pending().size()) status = InvalidArgument("the prompt holds no token.");
  if (status && num_read + num_pending > static_cast<size_t>(ContextOf(conversation))) {
    status =
        InvalidArgument(fmt::format("the prompt's {} tokens do not fit into what is left of the context of {}: {} are "
                                    "taken.",
                                    num_pending, ContextOf(conversation), num_read));
  }
  if (status) {
    conversation.answers = is_message;
    conversation.note = conversation.own.TakePinNote();
  } else {
    conversation.own = std::move(before);
  }
  return status;
}

struct Request {
  GeneratorOptions generator;
  std::unique_ptr<HostSampler> sampler;
  std::function<bool(std::string_view)> on_text;
};

Result<Request> ReadRequest(pith_conversation& conversation, const pith_generate_options& options) {
  EngineState& state = *conversation.sequence.state;
  Request request;
  auto generator = PITH_INIT(pith_generator_options);
  generator.max_tokens = options.max_tokens;
  generator.num_logprobs = options.num_logprobs;
  generator.stops = options.stops;
  generator.num_stops = options.num_stops;
  PITH_ASSIGN_OR_RETURN(request.generator, ReadGeneratorOptions(&generator));
  PITH_ASSIGN_OR_RETURN(SamplerOptions sampling, ReadSamplerOptions(*state.model->model, options.sampling));
  sampling.repeat_context = ContextOf(conversation);
  const uint32_t drawn = SeedOf(state.seed, state.num_draws++);
  if (sampling.seed == 0) sampling.seed = drawn;
  PITH_ASSIGN_OR_RETURN(request.sampler, HostSampler::Create(*state.model->model, sampling));
  if (options.on_text != nullptr) {
    request.on_text = [on_text = options.on_text, user = options.user](std::string_view text) {
      return on_text(user, std::string(text).c_str(), text.size());
    };
  }
  return request;
}

Status Generate(pith_conversation& conversation, const pith_generate_options& options, pith_generation* generation) {
  PITH_ASSIGN_OR_RETURN(const Request request, ReadRequest(conversation, options));
  if (options.message != nullptr && options.text != nullptr)
    return InvalidArgument("a message and a text exclude one another");
  if (options.message != nullptr) PITH_RETURN_IF_ERROR(Queue(conversation, options.message, true));
  if (options.text != nullptr) PITH_RETURN_IF_ERROR(Queue(conversation, options.text, false));
  const auto num_prompt = static_cast<int>(conversation.own.pending().size());
  if (num_prompt == 0) return InvalidArgument("there is nothing to answer: say or append something first");
  const auto cancelled = [&conversation] { return conversation.cancelled.load(std::memory_order_relaxed); };
  PITH_RETURN_IF_ERROR(conversation.own.Feed(*conversation.sequence.own, [&](size_t, size_t) { return !cancelled(); }));
  Generator generator(*conversation.sequence.state->model->text, SampleBy(*request.sampler), request.generator);
  const GenerateHooks hooks{.num_ctx = ContextOf(conversation), .on_text = request.on_text, .interrupted = cancelled};
  PITH_ASSIGN_OR_RETURN(GenerationResult result,
                        pith::Generate(*conversation.sequence.own, std::move(generator), hooks));
  if (std::exchange(conversation.answers, false)) {
    conversation.own.Answered(result.text, result.unfed);
  } else {
    conversation.own.Continued(result.unfed);
  }
  conversation.texts.Take(std::move(result));
  if (generation != nullptr) PITH_RETURN_IF_ERROR(Fill(conversation.texts.View(num_prompt), generation, "generation"));
  if (conversation.texts.result.stop == StopReason::kInterrupted) return Cancelled("stopped while generating");
  return {};
}

SessionNote NoteOf(const pith_conversation& conversation) {
  const std::span<const int32_t> pending = conversation.own.pending();
  return {.tokens = {pending.begin(), pending.end()}, .text = conversation.own.Save()};
}

// After the sequence took what was saved. The conversation was reset before.
Status TakeNote(pith_conversation& conversation, SessionNote note) {
  // "pith run" notes all tokens and no messages; sequences have no note.
  if (note.text.empty()) note = {.tokens = {}, .text = "[]"};
  EngineSequence& sequence = *conversation.sequence.own;
  const Status status = conversation.own.Restore(note.text, std::move(note.tokens), sequence.num_tokens());
  if (!status) PITH_RETURN_IF_ERROR(sequence.Reset());
  return status;
}

void Forget(pith_conversation& conversation) {
  conversation.own.Reset();
  conversation.answers = false;
  conversation.note.clear();
}

}  // namespace
}  // namespace pith::c_api

using namespace pith;         // NOLINT: functions of C have no namespace of their own
using namespace pith::c_api;  // NOLINT

extern "C" {

pith_status pith_conversation_new(pith_engine* engine, const pith_conversation_options* options,
                                  pith_conversation** conversation) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(conversation, "place for the conversation"));
    *conversation = nullptr;
    PITH_RETURN_IF_ERROR(Require(engine, "engine"));
    PITH_ASSIGN_OR_RETURN(const pith_conversation_options own, Read(options, "options of the conversation"));
    EngineState& state = *engine->state;
    PITH_ASSIGN_OR_RETURN(SequenceOptions sequence, ReadSequenceOptions(state, own.sequence));
    PITH_ASSIGN_OR_RETURN(std::unique_ptr<EngineSequence> made, EngineSequence::Create(state.engine, sequence));
    *conversation = new pith_conversation{
        .sequence = {engine->state, std::move(sequence), std::move(made)},
        .own =
            Conversation(*state.model->text, {.system = Text(own.system), .control_tokens = !own.plain_control_tokens}),
        .texts = {},
        .note = {}};
    return {};
  });
}

pith_status pith_conversation_fork(const pith_conversation* conversation, pith_conversation** fork) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(fork, "place for the fork"));
    *fork = nullptr;
    PITH_RETURN_IF_ERROR(Require(conversation, "conversation"));
    PITH_ASSIGN_OR_RETURN(std::unique_ptr<EngineSequence> made, conversation->sequence.own->Fork());
    *fork = new pith_conversation{
        .sequence = {conversation->sequence.state, conversation->sequence.options, std::move(made)},
        .own = conversation->own,
        .answers = conversation->answers,
        .texts = {},
        .note = {}};
    return {};
  });
}

void pith_conversation_free(pith_conversation* conversation) { delete conversation; }

pith_status pith_conversation_say(pith_conversation* conversation, const char* message) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(conversation, "conversation"));
    PITH_RETURN_IF_ERROR(Require(message, "message"));
    return Queue(*conversation, message, true);
  });
}

pith_status pith_conversation_append(pith_conversation* conversation, const char* text) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(conversation, "conversation"));
    PITH_RETURN_IF_ERROR(Require(text, "text"));
    return Queue(*conversation, text, false);
  });
}

pith_status pith_conversation_read(pith_conversation* conversation, pith_progress_fn progress, void* user) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(conversation, "conversation"));
    conversation->cancelled = false;
    return conversation->own.Feed(*conversation->sequence.own, [&](size_t done, size_t total) {
      return !conversation->cancelled && (progress == nullptr || progress(user, done, total));
    });
  });
}

pith_status pith_conversation_generate(pith_conversation* conversation, const pith_generate_options* options,
                                       pith_generation* generation) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(conversation, "conversation"));
    conversation->cancelled = false;
    PITH_ASSIGN_OR_RETURN(const pith_generate_options own, Read(options, "options of the generation"));
    if (generation != nullptr) PITH_RETURN_IF_ERROR(Fill(pith_generation{}, generation, "generation"));
    return Generate(*conversation, own, generation);
  });
}

pith_status pith_conversation_reset(pith_conversation* conversation) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(conversation, "conversation"));
    Forget(*conversation);
    return conversation->sequence.own->Reset();
  });
}

void pith_conversation_cancel(pith_conversation* conversation) {
  if (conversation != nullptr) conversation->cancelled.store(true, std::memory_order_relaxed);
}

size_t pith_conversation_num_pending(const pith_conversation* conversation) {
  return conversation == nullptr ? 0 : conversation->own.pending().size();
}

const char* pith_conversation_note(const pith_conversation* conversation) {
  return conversation == nullptr ? "" : conversation->note.c_str();
}

pith_sequence* pith_conversation_sequence(pith_conversation* conversation) {
  return conversation == nullptr ? nullptr : &conversation->sequence;
}

pith_status pith_conversation_save(const pith_conversation* conversation, const char* path) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(conversation, "conversation"));
    PITH_RETURN_IF_ERROR(Require(path, "path to save to"));
    return conversation->sequence.own->Save(path, NoteOf(*conversation));
  });
}

pith_status pith_conversation_save_to(const pith_conversation* conversation, pith_write_fn write, void* user) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(conversation, "conversation"));
    PITH_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes,
                          conversation->sequence.own->SaveToMemory(NoteOf(*conversation)));
    return WriteAll(write, user, bytes);
  });
}

pith_status pith_conversation_restore(pith_conversation* conversation, const char* path) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(conversation, "conversation"));
    PITH_RETURN_IF_ERROR(Require(path, "path of a saved conversation"));
    Forget(*conversation);
    PITH_ASSIGN_OR_RETURN(auto restored, conversation->sequence.own->Restore(path));
    if (!restored) return NotFound(fmt::format("there is no session in {}", path));
    return TakeNote(*conversation, std::move(restored->note));
  });
}

pith_status pith_conversation_restore_from(pith_conversation* conversation, pith_read_fn read, void* user) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(conversation, "conversation"));
    PITH_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadToEnd(read, user));
    Forget(*conversation);
    PITH_ASSIGN_OR_RETURN(auto restored, conversation->sequence.own->RestoreFromMemory(bytes));
    return TakeNote(*conversation, std::move(restored.note));
  });
}

}  // extern "C"
