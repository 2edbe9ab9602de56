// Handlers of what lets tokens see each other, and of drawing them. Every computation is elsewhere.
#include "handlers.h"
#include "attention.h"
#include "recurrent.h"
#include "sampler.h"

namespace cortex {
namespace {

ffi::Error attention(Floats qkv, Floats cos, Floats sin, Ints table, Ints slot, Ints start, Ints count, Floats keys,
                     Floats values, ffi::RemainingArgs extra, ffi::Result<Floats> mixed, ffi::Result<Floats> new_keys,
                     ffi::Result<Floats> new_values, int64_t group, int64_t window, float scale, float soft_cap, bool norms,
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

// The rows of a step with the states of one or two kinds; an error where they name a slot or snapshot that is not there.
ffi::Error text_rows(const Ints& slot, const Ints& start, const Ints& count, const Ints& load, const Ints& save,
                     int64_t page_size, int64_t slots, int64_t snapshots, StateRows& r) {
  r = {slot.typed_data(), start.typed_data(), count.typed_data(), load.typed_data(), save.typed_data(),
       static_cast<int64_t>(slot.element_count()), r.tokens, page_size};
  const size_t rows = slot.element_count();
  for (const Ints* each : {&start, &count, &load, &save})
    if (each->element_count() != rows) return ffi::Error::InvalidArgument("as many of each as there are rows");
  if (page_size < 1) return ffi::Error::InvalidArgument("pages of no tokens");
  for (int64_t row = 0; row < r.rows; ++row) {
    if (r.slot[row] < 0 || r.slot[row] >= slots) return ffi::Error::InvalidArgument("no such slot");
    if (r.load[row] < 0 || r.load[row] >= snapshots || r.save[row] < 0 || r.save[row] >= snapshots)
      return ffi::Error::InvalidArgument("no such snapshot");
  }
  return ffi::Error::Success();
}

// States by slot and by snapshot, of `size` floats each, which are written in place.
ffi::Error states_of(const Floats& by_slot, const Floats& by_snapshot, ffi::Result<Floats>& new_slots,
                     ffi::Result<Floats>& new_snapshots, int64_t size, States& s) {
  if (new_slots->untyped_data() != by_slot.untyped_data() || new_snapshots->untyped_data() != by_snapshot.untyped_data())
    return ffi::Error::InvalidArgument("the states were copied: they must be written in place");
  for (const Floats* each : {&by_slot, &by_snapshot})
    if (static_cast<int64_t>(each->element_count()) != each->dimensions()[0] * size)
      return ffi::Error::InvalidArgument("states of another size");
  s = {new_slots->typed_data(), new_snapshots->typed_data(), size};
  return ffi::Error::Success();
}

ffi::Error short_convolution(Floats bcx, Floats taps, Ints slot, Ints start, Ints count, Ints load, Ints save,
                             Floats by_slot, Floats by_snapshot, ffi::RemainingArgs extra, ffi::Result<Floats> given,
                             ffi::Result<Floats> new_slots, ffi::Result<Floats> new_snapshots, int64_t page_size,
                             bool shift) {
  const auto in = bcx.dimensions(), weight = taps.dimensions();
  if (in.size() != 2 || weight.size() != 2 || in[1] != 3 * weight[1] || weight[0] < 2)
    return ffi::Error::InvalidArgument("B, C and x are as wide as the taps");
  ShortConvolution s{};
  s.rows.tokens = in[0];
  s.convolution = {taps.typed_data(), weight[0], weight[1], {}};
  s.bcx = bcx.typed_data();
  s.given = given->typed_data();
  if (static_cast<int64_t>(given->element_count()) != in[0] * weight[1])
    return ffi::Error::InvalidArgument("what is given is as wide as the taps");
  Optional optional(extra);
  s.shift = optional.next(shift, weight[1]);
  if (!optional.fits()) return ffi::Error::InvalidArgument("a shift of another size");
  const auto error = states_of(by_slot, by_snapshot, new_slots, new_snapshots, (weight[0] - 1) * weight[1], s.convolution.states);
  if (error.failure()) return error;
  const auto misfit = text_rows(slot, start, count, load, save, page_size, by_slot.dimensions()[0], by_snapshot.dimensions()[0], s.rows);
  if (misfit.failure()) return misfit;
  convolve(s);
  return ffi::Error::Success();
}

ffi::Error gated_delta(Floats qkv, Floats gates, Floats z, Floats taps, Floats rate, Floats shift, Floats norm, Ints slot,
                       Ints start, Ints count, Ints load, Ints save, Floats input_slots, Floats state_slots,
                       Floats input_snapshots, Floats state_snapshots, ffi::Result<Floats> given,
                       ffi::Result<Floats> new_input_slots, ffi::Result<Floats> new_state_slots,
                       ffi::Result<Floats> new_input_snapshots, ffi::Result<Floats> new_state_snapshots, int64_t page_size,
                       float epsilon) {
  const auto in = qkv.dimensions(), weight = taps.dimensions(), state = state_slots.dimensions();
  if (in.size() != 2 || weight.size() != 2 || state.size() != 5)
    return ffi::Error::InvalidArgument("qkv and taps have two dimensions and states five");
  Delta d{};
  d.key_heads = state[1];
  d.group = state[2];
  d.keys = state[3];
  d.values = state[4];
  const int64_t channels = d.key_heads * d.per_key_head(), given_size = in[0] * d.heads() * d.values;
  if (in[1] != channels || weight[1] != channels || weight[0] < 2)
    return ffi::Error::InvalidArgument("qkv and taps are of other widths than the states");
  if (d.keys % 16 != 0 || d.values % 16 != 0) return ffi::Error::InvalidArgument("head widths are multiples of 16");
  const auto size = [](const auto& array) { return static_cast<int64_t>(array.element_count()); };
  if (size(gates) != in[0] * 2 * d.heads() || size(z) != given_size || size(*given) != given_size ||
      size(rate) != d.heads() || size(shift) != d.heads() || size(norm) != d.values)
    return ffi::Error::InvalidArgument("gates and norm are of other sizes than the states");
  d.rows.tokens = in[0];
  d.convolution = {taps.typed_data(), weight[0], channels, {}};
  d.qkv = qkv.typed_data();
  d.gates = gates.typed_data();
  d.z = z.typed_data();
  d.rate = rate.typed_data();
  d.shift = shift.typed_data();
  d.norm = norm.typed_data();
  d.given = given->typed_data();
  d.epsilon = epsilon;
  auto error = states_of(input_slots, input_snapshots, new_input_slots, new_input_snapshots, (weight[0] - 1) * channels,
                         d.convolution.states);
  if (error.failure()) return error;
  error = states_of(state_slots, state_snapshots, new_state_slots, new_state_snapshots, d.heads() * d.keys * d.values, d.states);
  if (error.failure()) return error;
  const int64_t slots = std::min(state[0], input_slots.dimensions()[0]);
  const int64_t snapshots = std::min(state_snapshots.dimensions()[0], input_snapshots.dimensions()[0]);
  error = text_rows(slot, start, count, load, save, page_size, slots, snapshots, d.rows);
  if (error.failure()) return error;
  recur(d);
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(cortex_short_convolution, cortex::guarded<cortex::short_convolution>,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
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
                                  .Attr<int64_t>("page_size")
                                  .Attr<bool>("shift"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(cortex_gated_delta, cortex::guarded<cortex::gated_delta>,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<int64_t>("page_size")
                                  .Attr<float>("epsilon"));
