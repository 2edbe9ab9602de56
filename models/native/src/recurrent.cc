// Handlers of recurrent layers. Every computation is elsewhere.
#include "handlers.h"
#include "recurrent.h"
#include "state_space.h"

namespace cortex {
namespace {

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
    if (r.load[row] < -1 || r.load[row] >= snapshots || r.save[row] < 0 || r.save[row] >= snapshots)
      return ffi::Error::InvalidArgument("no such snapshot");
    if (r.load[row] < 0 && (row == 0 || r.count[row - 1] < 1 || r.slot[row - 1] != r.slot[row]))
      return ffi::Error::InvalidArgument("follows no row of its text");
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

ffi::Error mamba(Floats cbx, Floats steps, Floats z, Floats taps, Floats bias, Floats rate, Floats shift, Floats skip,
                 Floats norm, Ints slot, Ints start, Ints count, Ints load, Ints save, Floats input_slots, Floats state_slots,
                 Floats input_snapshots, Floats state_snapshots, ffi::Result<Floats> given,
                 ffi::Result<Floats> new_input_slots, ffi::Result<Floats> new_state_slots,
                 ffi::Result<Floats> new_input_snapshots, ffi::Result<Floats> new_state_snapshots, int64_t page_size,
                 float epsilon) {
  const auto in = cbx.dimensions(), weight = taps.dimensions(), state = state_slots.dimensions();
  if (in.size() != 2 || weight.size() != 2 || state.size() != 5)
    return ffi::Error::InvalidArgument("cbx and taps have two dimensions and states five");
  StateSpace s{};
  s.groups = state[1];
  s.group = state[2];
  s.keys = state[3];
  s.values = state[4];
  const int64_t channels = s.groups * s.per_group(), width = s.heads() * s.values;
  if (in[1] != channels || weight[1] != channels || weight[0] < 2)
    return ffi::Error::InvalidArgument("cbx and taps are of other widths than the states");
  if (s.keys % 16 != 0 || s.values % 16 != 0) return ffi::Error::InvalidArgument("head widths are multiples of 16");
  const auto size = [](const auto& array) { return static_cast<int64_t>(array.element_count()); };
  if (size(steps) != in[0] * s.heads() || size(z) != in[0] * width || size(*given) != in[0] * width ||
      size(bias) != channels || size(rate) != s.heads() || size(shift) != s.heads() || size(skip) != s.heads() ||
      size(norm) != width)
    return ffi::Error::InvalidArgument("steps and norm are of other sizes than the states");
  s.rows.tokens = in[0];
  s.convolution = {taps.typed_data(), weight[0], channels, {}};
  s.cbx = cbx.typed_data();
  s.steps = steps.typed_data();
  s.z = z.typed_data();
  s.bias = bias.typed_data();
  s.rate = rate.typed_data();
  s.shift = shift.typed_data();
  s.skip = skip.typed_data();
  s.norm = norm.typed_data();
  s.given = given->typed_data();
  s.epsilon = epsilon;
  auto error = states_of(input_slots, input_snapshots, new_input_slots, new_input_snapshots, (weight[0] - 1) * channels,
                         s.convolution.states);
  if (error.failure()) return error;
  error = states_of(state_slots, state_snapshots, new_state_slots, new_state_snapshots, width * s.keys, s.states);
  if (error.failure()) return error;
  const int64_t slots = std::min(state[0], input_slots.dimensions()[0]);
  const int64_t snapshots = std::min(state_snapshots.dimensions()[0], input_snapshots.dimensions()[0]);
  error = text_rows(slot, start, count, load, save, page_size, slots, snapshots, s.rows);
  if (error.failure()) return error;
  recur(s);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace cortex

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

XLA_FFI_DEFINE_HANDLER_SYMBOL(cortex_mamba, cortex::guarded<cortex::mamba>,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
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
