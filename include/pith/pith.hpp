// pith as a library, in C++20: all of <pith/pith.h>, whose comments hold here too, with values that free themselves.
//
//   auto model = pith::Model::Load("model.gguf");
//   if (!model) return Complain(model.error().message);
//   auto engine = pith::Engine::Create(*model, {.budget_bytes = 64 << 20, .recipe = "snapkv"});
//   auto talk = pith::Conversation::Create(*engine, {.system = "Be brief."});
//   auto reply = talk->Say("Why is the sky blue?", {.max_tokens = 100},
//                          [](std::string_view text) { std::cout << text; return true; });
//
// No function throws, save for std::bad_alloc of the containers; callbacks must not. A Model or an Engine is a
// reference: copies are the same one, and all that was made with it keeps it.
//
// All of it is in an inline namespace, so that a program which links pith statically has other symbols than pith's own
// classes of these names.
#ifndef PITH_PITH_HPP_
#define PITH_PITH_HPP_

#include <pith/cpp/base.hpp>
#include <pith/cpp/conversation.hpp>
#include <pith/cpp/engine.hpp>
#include <pith/cpp/model.hpp>
#include <pith/cpp/scorer.hpp>
#include <pith/cpp/stages.hpp>
#include <pith/cpp/text.hpp>

#endif  // PITH_PITH_HPP_
