// Handlers of mixtures of experts. Every computation is elsewhere.
#include "handlers.h"
#include "experts.h"

namespace cortex {
namespace {

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
                    int64_t group, bool half, bool offset, bool norm, bool bias, bool shares, int64_t gate, float limit, float epsilon) {
  const auto in = x.dimensions(), out = y->dimensions();
  if (in.size() != 2 || out.size() != 2) return ffi::Error::InvalidArgument("x and y have two dimensions");
  if (gate <= UNGATED || gate > RELU2) return ffi::Error::InvalidArgument("unknown gate");
  Routed r{token.typed_data(), nullptr, begin.typed_data(), static_cast<int64_t>(begin.element_count()) - 1};
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
  p.bias = given.next(bias, r.experts * (p.gated() ? 2 : 1) * p.outputs);
  r.share = given.next(shares, out[0]);
  if (!given.fits()) return ffi::Error::InvalidArgument("norm, bias and shares are of other sizes");
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

}  // namespace
}  // namespace cortex

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
                                  .Attr<bool>("shares")
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
