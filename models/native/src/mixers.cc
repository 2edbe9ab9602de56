// Handlers of attention, and of drawing tokens. Every computation is elsewhere.
#include "handlers.h"
#include "attention.h"
#include "sampler.h"

namespace cortex {
namespace {

ffi::Error attention(Floats qkv, Floats cos, Floats sin, Ints table, Ints slot, Ints start, Ints count, Floats keys,
                     Floats values, ffi::RemainingArgs extra, ffi::Result<Floats> mixed, ffi::Result<Floats> new_keys,
                     ffi::Result<Floats> new_values, int64_t group, int64_t window, bool aligned, float scale, float soft_cap, bool norms,
                     float epsilon, bool sinks) {
  const auto shape = qkv.dimensions(), key_pool = keys.dimensions(), value_pool = values.dimensions();
  if (shape.size() != 2 || key_pool.size() != 4 || value_pool.size() != 4)
    return ffi::Error::InvalidArgument("qkv has two dimensions and the pools four");
  if (new_keys->untyped_data() != keys.untyped_data() || new_values->untyped_data() != values.untyped_data())
    return ffi::Error::InvalidArgument("the pool was copied: it must be written in place");
  Attention a{};
  a.qkv = qkv.typed_data();
  a.cos = cos.typed_data();
  a.sin = sin.typed_data();
  a.table = table.typed_data();
  a.slot = slot.typed_data();
  a.start = start.typed_data();
  a.count = count.typed_data();
  a.keys = new_keys->typed_data();
  a.values = new_values->typed_data();
  a.mixed = mixed->typed_data();
  a.tokens = shape[0];
  a.rows = static_cast<int64_t>(slot.element_count());
  a.table_width = table.dimensions()[1];
  a.kv_heads = key_pool[1];
  a.group = group;
  a.k_width = key_pool[2];
  a.v_width = value_pool[3];
  a.page_size = key_pool[3];
  a.half = cos.dimensions().back();
  a.window = window;
  a.aligned = aligned;
  a.scale = scale;
  a.soft_cap = soft_cap;
  a.epsilon = epsilon;
  Optional given(extra);
  a.q_norm = given.next(norms, a.k_width);
  a.k_norm = given.next(norms, a.k_width);
  a.sinks = given.next(sinks, a.kv_heads * a.group);
  if (!given.fits()) return ffi::Error::InvalidArgument("norms and sinks are of other sizes");
  if (group < 1 || shape[1] != a.kv_heads * ((group + 1) * a.k_width + a.v_width))
    return ffi::Error::InvalidArgument("qkv is of other widths than the pool");
  if (a.half != 0 && a.half != a.k_width / 2) return ffi::Error::InvalidArgument("heads turn as a whole or not at all");
  const int64_t slots = table.dimensions()[0];
  for (int64_t row = 0; row < a.rows; ++row)
    if (a.slot[row] < 0 || a.slot[row] >= slots) return ffi::Error::InvalidArgument("no such slot");
  if (a.k_width % 16 != 0 || a.v_width % 16 != 0 || a.page_size % 16 != 0)
    return ffi::Error::InvalidArgument("head widths and page size are multiples of 16");
  attend(a);
  return ffi::Error::Success();
}

ffi::Error sampled(Floats logits, Ints ints, Floats floats, ffi::Buffer<ffi::S16> generated,
                  ffi::Buffer<ffi::PRED> in_prompt, Ints bias_ids, Floats bias, ffi::Buffer<ffi::U32> bias_until,
                  Ints masks, ffi::Result<Ints> token, ffi::Result<Floats> logprob, ffi::Result<Ints> top_ids,
                  ffi::Result<Floats> top_logprobs) {
  const auto shape = logits.dimensions(), past = generated.dimensions(), top = top_ids->dimensions();
  if (shape.size() != 2 || past.size() != 2 || past[1] != shape[1] || in_prompt.element_count() != generated.element_count())
    return ffi::Error::InvalidArgument("logits and past are over one vocabulary");
  const int64_t rows = shape[0], slots = past[0];
  if (static_cast<int64_t>(ints.element_count()) != rows * INTS ||
      static_cast<int64_t>(floats.element_count()) != rows * FLOATS || bias_ids.dimensions()[0] != slots)
    return ffi::Error::InvalidArgument("parameters of other rows or slots");
  Sampling s{};
  s.logits = logits.typed_data();
  s.ints = ints.typed_data();
  s.floats = floats.typed_data();
  s.generated = generated.typed_data();
  s.in_prompt = reinterpret_cast<const uint8_t*>(in_prompt.typed_data());
  s.bias_ids = bias_ids.typed_data();
  s.bias = bias.typed_data();
  s.bias_until = bias_until.typed_data();
  s.masks = masks.typed_data();
  s.token = token->typed_data();
  s.logprob = logprob->typed_data();
  s.top_ids = top_ids->typed_data();
  s.top_logprobs = top_logprobs->typed_data();
  s.rows = rows;
  s.vocab = shape[1];
  s.biases = bias_ids.dimensions()[1];
  s.alternatives = top[1];
  s.words = masks.dimensions()[1];
  if (s.vocab < 1 || s.alternatives < 1) return ffi::Error::InvalidArgument("nothing to choose from");
  for (int64_t row = 0; row < rows; ++row)
    if (s.integer(row, SLOT) < 0 || s.integer(row, SLOT) >= slots) return ffi::Error::InvalidArgument("no such slot");
  if (s.words != (s.vocab + 31) / 32) return ffi::Error::InvalidArgument("masks of another vocabulary");
  for (int64_t row = masks.dimensions()[0]; row < rows; ++row)
    if (s.masked(row)) return ffi::Error::InvalidArgument("no such mask");
  sample(s);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace cortex

XLA_FFI_DEFINE_HANDLER_SYMBOL(cortex_attention, cortex::guarded<cortex::attention>,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<int64_t>("group")
                                  .Attr<int64_t>("window")
                                  .Attr<bool>("aligned")
                                  .Attr<float>("scale")
                                  .Attr<float>("soft_cap")
                                  .Attr<bool>("norms")
                                  .Attr<float>("epsilon")
                                  .Attr<bool>("sinks"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(cortex_sample, cortex::guarded<cortex::sampled>,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S16>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::PRED>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::U32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>());
