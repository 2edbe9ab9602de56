// The kernels as XLA FFI handlers. Knows XLA's buffers and attributes; every computation is elsewhere.
//
// https://openxla.org/xla/custom_call: a handler checks what it is given and never throws.
#include <algorithm>
#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include "attention.h"
#include "experts.h"
#include "matmul.h"
#include "recurrent.h"
#include "sampler.h"
#include "xla/ffi/api/ffi.h"

namespace cortex {
namespace {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;

// As `models.native.tiles` numbers them.
enum Codes : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, INT8 = 3, INT4 = 4 };

using Bytes = ffi::Buffer<ffi::U8>;

// Calls use(weights) with the layout that the attributes say: codes, scales and offsets one after the other in `matrix`.
template <class Use>
ffi::Error with_weights(const Bytes& matrix, int64_t codes, int64_t group, bool half, bool offset, int64_t tiles,
                        int64_t columns, const Use& use) {
  const uint8_t* data = matrix.typed_data();
  const int64_t size = static_cast<int64_t>(matrix.element_count());
  const auto plain = [&](auto kind) {
    using C = decltype(kind);
    if (size != tiles * columns * C::BYTES) return ffi::Error::InvalidArgument("a matrix of another size");
    return use(Weights<C, Float32, false>{data, nullptr, nullptr, columns, 0});
  };
  if (codes == FLOAT32) return plain(Float32{});
  if (codes == BFLOAT16) return plain(Bfloat16{});
  if (codes == FLOAT16) return plain(Float16{});
  if (codes != INT8 && codes != INT4) return ffi::Error::InvalidArgument("unknown codes");
  if (group <= 0 || columns % group != 0) return ffi::Error::InvalidArgument("columns do not divide into groups");
  const auto pick = [&](auto kind) {
    using C = decltype(kind);
    const int64_t scales = tiles * (columns / group) * (half ? Float16::BYTES : Float32::BYTES);
    const uint8_t *scale = data + tiles * columns * C::BYTES, *offsets = scale + scales;
    if (size != tiles * columns * C::BYTES + scales * (1 + offset))
      return ffi::Error::InvalidArgument("a matrix of another size");
    if (half && offset) return use(Weights<C, Float16, true>{data, scale, offsets, columns, group});
    if (half) return use(Weights<C, Float16, false>{data, scale, nullptr, columns, group});
    if (offset) return use(Weights<C, Float32, true>{data, scale, offsets, columns, group});
    return use(Weights<C, Float32, false>{data, scale, nullptr, columns, group});
  };
  return codes == INT8 ? pick(Int8{}) : pick(Int4{});
}

// How many of `rows` the caller wants.
int64_t live_of(const Ints& live, int64_t rows) {
  return live.element_count() < 1 ? 0 : std::clamp<int64_t>(live.typed_data()[0], 0, rows);
}

// What a call may have or not, one after the other: `next` gives the address if the caller says that it is there.
class Optional {
 public:
  explicit Optional(ffi::RemainingArgs extra) : extra_(extra) {}

  // Null if it is not there; what has another size is remembered as a misfit.
  const float* next(bool there, int64_t size) {
    if (!there) return nullptr;
    const auto found = used_ < extra_.size() ? extra_.get<Floats>(used_) : ffi::ErrorOr<Floats>(ffi::Unexpected(ffi::Error::InvalidArgument("none")));
    ++used_;
    if (found.has_value() && static_cast<int64_t>(found->element_count()) == size) return found->typed_data();
    misfit_ = true;
    return nullptr;
  }

  bool fits() const { return !misfit_ && used_ == extra_.size(); }

 private:
  ffi::RemainingArgs extra_;
  size_t used_ = 0;
  bool misfit_ = false;
};

ffi::Error linear(Floats x, Bytes matrix, Ints live, ffi::RemainingArgs extra, ffi::Result<Floats> y, int64_t codes, int64_t group,
                  bool half, bool offset, bool norm, bool bias, bool post_norm, bool residual, int64_t gate, float limit,
                  float epsilon, float post_epsilon, int64_t heads) {
  const auto in = x.dimensions(), out = y->dimensions();
  if (in.size() != 2 || out.size() != 2) return ffi::Error::InvalidArgument("x and y have two dimensions");
  Product p{};
  p.x = x.typed_data();
  p.y = y->typed_data();
  p.rows = live_of(live, in[0]);
  if (heads < 1 || in[1] % heads != 0 || out[1] % heads != 0) return ffi::Error::InvalidArgument("rows do not divide among heads");
  if (heads > 1 && (norm || bias || post_norm || residual || gate != UNGATED))
    return ffi::Error::InvalidArgument("matrices side by side have nothing around them");
  p.columns = in[1] / heads;
  p.outputs = out[1] / heads;
  p.heads = heads;
  p.epsilon = epsilon;
  p.post_epsilon = post_epsilon;
  if (gate < UNGATED || gate > SWIGLU_OAI) return ffi::Error::InvalidArgument("unknown gate");
  p.gate = static_cast<Gate>(gate);
  p.limit = limit;
  const int64_t sums = p.outputs * (p.gated() ? 2 : 1);
  Optional given(extra);
  p.norm = given.next(norm, p.columns);
  p.bias = given.next(bias, sums);
  p.post_norm = given.next(post_norm, p.outputs);
  p.residual = given.next(residual, in[0] * p.outputs);
  if (!given.fits()) return ffi::Error::InvalidArgument("norms, bias and residual are of other sizes");
  const int64_t tiles = heads * ((p.outputs + TILE - 1) / TILE) * (p.gated() ? 2 : 1);
  return with_weights(matrix, codes, group, half, offset, tiles, p.columns, [&](const auto& w) {
    if (p.rows > 0 && heads > 1) multiply_heads(p, w);
    else if (p.rows > 0) multiply(p, w);
    return ffi::Error::Success();
  });
}

ffi::Error routed(Floats logits, Ints live, ffi::RemainingArgs extra, ffi::Result<Ints> token, ffi::Result<Floats> share,
                  ffi::Result<Ints> begin, bool correction, int64_t active, int64_t groups, int64_t kept_groups,
                  int64_t group_best, bool sigmoid, bool renormalised, float scale) {
  const auto shape = logits.dimensions();
  if (shape.size() != 2) return ffi::Error::InvalidArgument("logits have two dimensions");
  Routing r{};
  r.logits = logits.typed_data();
  r.token = token->typed_data();
  r.share = share->typed_data();
  r.begin = begin->typed_data();
  r.tokens = live_of(live, shape[0]);
  r.experts = shape[1];
  r.active = active;
  r.groups = groups;
  r.kept_groups = kept_groups;
  r.group_best = group_best;
  r.sigmoid = sigmoid;
  r.renormalised = renormalised;
  r.scale = scale;
  Optional given(extra);
  r.correction = given.next(correction, r.experts);
  if (!given.fits()) return ffi::Error::InvalidArgument("a correction of another size");
  if (active < 1 || active > r.experts || groups < 1 || r.experts % groups != 0 || kept_groups > groups ||
      (groups > 1 && group_best > r.experts / groups))
    return ffi::Error::InvalidArgument("experts do not divide so");
  const int64_t rows = shape[0] * active;
  if (static_cast<int64_t>(token->element_count()) != rows || static_cast<int64_t>(share->element_count()) != rows ||
      static_cast<int64_t>(begin->element_count()) != r.experts + 1)
    return ffi::Error::InvalidArgument("rows of another number");
  route(r);
  return ffi::Error::Success();
}

// Rows that are where they say, of tokens that there are.
bool fits(const Routed& r, int64_t rows, int64_t tokens) {
  if (r.begin[0] != 0 || r.begin[r.experts] > rows) return false;
  for (int64_t e = 0; e < r.experts; ++e)
    if (r.begin[e + 1] < r.begin[e]) return false;
  for (int64_t i = 0; i < r.begin[r.experts]; ++i)
    if (r.token[i] < 0 || r.token[i] >= tokens) return false;
  return true;
}

ffi::Error gathered(Floats x, Bytes matrix, Ints token, Ints begin, ffi::RemainingArgs extra, ffi::Result<Floats> y, int64_t codes,
                    int64_t group, bool half, bool offset, bool norm, bool bias, int64_t gate, float limit, float epsilon) {
  const auto in = x.dimensions(), out = y->dimensions();
  if (in.size() != 2 || out.size() != 2) return ffi::Error::InvalidArgument("x and y have two dimensions");
  if (gate <= UNGATED || gate > SWIGLU_OAI) return ffi::Error::InvalidArgument("unknown gate");
  const Routed r{token.typed_data(), nullptr, begin.typed_data(), static_cast<int64_t>(begin.element_count()) - 1};
  if (static_cast<int64_t>(token.element_count()) != out[0] || r.experts < 1 || !fits(r, out[0], in[0]))
    return ffi::Error::InvalidArgument("rows of no expert");
  Product p{};
  p.x = x.typed_data();
  p.y = y->typed_data();
  p.columns = in[1];
  p.outputs = out[1];
  p.epsilon = epsilon;
  p.gate = static_cast<Gate>(gate);
  p.limit = limit;
  Optional given(extra);
  p.norm = given.next(norm, p.columns);
  p.bias = given.next(bias, r.experts * 2 * p.outputs);
  if (!given.fits()) return ffi::Error::InvalidArgument("norm and bias are of other sizes");
  return with_weights(matrix, codes, group, half, offset, r.experts * tiles_of(p), p.columns, [&](const auto& w) {
    multiply_gathered(p, w, r);
    return ffi::Error::Success();
  });
}

ffi::Error summed(Floats x, Bytes matrix, Ints token, Floats share, Ints begin, Ints live, ffi::RemainingArgs extra,
                  ffi::Result<Floats> y, int64_t codes, int64_t group, bool half, bool offset, bool bias, bool residual) {
  const auto in = x.dimensions(), out = y->dimensions();
  if (in.size() != 2 || out.size() != 2) return ffi::Error::InvalidArgument("x and y have two dimensions");
  const Routed r{token.typed_data(), share.typed_data(), begin.typed_data(), static_cast<int64_t>(begin.element_count()) - 1};
  Product p{};
  p.x = x.typed_data();
  p.y = y->typed_data();
  p.rows = live_of(live, out[0]);
  p.columns = in[1];
  p.outputs = out[1];
  if (static_cast<int64_t>(token.element_count()) != in[0] || static_cast<int64_t>(share.element_count()) != in[0] ||
      r.experts < 1 || !fits(r, in[0], p.rows))
    return ffi::Error::InvalidArgument("rows of no expert");
  Optional given(extra);
  p.bias = given.next(bias, r.experts * p.outputs);
  p.residual = given.next(residual, out[0] * p.outputs);
  if (!given.fits()) return ffi::Error::InvalidArgument("bias and residual are of other sizes");
  return with_weights(matrix, codes, group, half, offset, r.experts * tiles_of(p), p.columns, [&](const auto& w) {
    multiply_summed(p, w, r);
    return ffi::Error::Success();
  });
}

ffi::Error rows(Ints tokens, Bytes matrix, Ints live, ffi::Result<Floats> y, int64_t codes, int64_t group, bool half, bool offset,
                int64_t tiles) {
  const int64_t columns = y->dimensions()[1];
  return with_weights(matrix, codes, group, half, offset, tiles, columns, [&](const auto& w) {
    Scratch memory;
    float* tile = memory.get(columns * TILE);
    const int64_t count = live_of(live, static_cast<int64_t>(tokens.element_count()));
    for (int64_t t = 0; t < count; ++t) {
      const int64_t token = tokens.typed_data()[t];
      if (token < 0 || token >= tiles * TILE) return ffi::Error::InvalidArgument("no such row");
      w.expand(token / TILE, tile);
      for (int64_t k = 0; k < columns; ++k) y->typed_data()[t * columns + k] = tile[k * TILE + token % TILE];
    }
    return ffi::Error::Success();
  });
}

ffi::Error norm(Floats x, Floats weight, Ints live, ffi::Result<Floats> y, float epsilon) {
  const int64_t width = x.dimensions().back();
  const int64_t count = live_of(live, width > 0 ? static_cast<int64_t>(x.element_count()) / width : 0);
  for (int64_t r = 0; r < count; ++r)
    normalize(x.typed_data() + r * width, weight.typed_data(), width, epsilon, y->typed_data() + r * width);
  return ffi::Error::Success();
}

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

template <auto handler>
struct Guarded;

// A handler that tells of memory that is not there, as XLA tells of its own.
template <class... Args, ffi::Error (*handler)(Args...)>
struct Guarded<handler> {
  static ffi::Error call(Args... args) {
    try {
      return handler(std::move(args)...);
    } catch (const std::bad_alloc&) {
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, "Out of memory: the scratch of a native kernel");
    }
  }
};

template <auto handler>
constexpr auto guarded = &Guarded<handler>::call;

}  // namespace
}  // namespace cortex

extern "C" int64_t cortex_scratch_kept() { return cortex::kept_bytes.load(); }

XLA_FFI_DEFINE_HANDLER_SYMBOL(cortex_linear, cortex::guarded<cortex::linear>,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::U8>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<int64_t>("codes")
                                  .Attr<int64_t>("group")
                                  .Attr<bool>("half")
                                  .Attr<bool>("offset")
                                  .Attr<bool>("norm")
                                  .Attr<bool>("bias")
                                  .Attr<bool>("post_norm")
                                  .Attr<bool>("residual")
                                  .Attr<int64_t>("gate")
                                  .Attr<float>("limit")
                                  .Attr<float>("epsilon")
                                  .Attr<float>("post_epsilon")
                                  .Attr<int64_t>("heads"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(cortex_route, cortex::guarded<cortex::routed>,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Attr<bool>("correction")
                                  .Attr<int64_t>("active")
                                  .Attr<int64_t>("groups")
                                  .Attr<int64_t>("kept_groups")
                                  .Attr<int64_t>("group_best")
                                  .Attr<bool>("sigmoid")
                                  .Attr<bool>("renormalised")
                                  .Attr<float>("scale"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(cortex_gathered, cortex::guarded<cortex::gathered>,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::U8>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<int64_t>("codes")
                                  .Attr<int64_t>("group")
                                  .Attr<bool>("half")
                                  .Attr<bool>("offset")
                                  .Attr<bool>("norm")
                                  .Attr<bool>("bias")
                                  .Attr<int64_t>("gate")
                                  .Attr<float>("limit")
                                  .Attr<float>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(cortex_summed, cortex::guarded<cortex::summed>,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::U8>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<int64_t>("codes")
                                  .Attr<int64_t>("group")
                                  .Attr<bool>("half")
                                  .Attr<bool>("offset")
                                  .Attr<bool>("bias")
                                  .Attr<bool>("residual"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(cortex_rows, cortex::guarded<cortex::rows>,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::U8>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<int64_t>("codes")
                                  .Attr<int64_t>("group")
                                  .Attr<bool>("half")
                                  .Attr<bool>("offset")
                                  .Attr<int64_t>("tiles"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(cortex_norm, cortex::guarded<cortex::norm>,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<float>("epsilon"));
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
