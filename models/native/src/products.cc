// Handlers of products with a matrix, of its rows, and of norms. Every computation is elsewhere.
#include "handlers.h"
#include "experts.h"
#include "matmul.h"

namespace cortex {
namespace {

ffi::Error linear(Floats x, Bytes matrix, Ints live, ffi::RemainingArgs extra, ffi::Result<Floats> y, int64_t codes, int64_t group,
                  bool half, bool offset, bool norm, bool bias, bool post_norm, bool residual, bool beside, int64_t gate,
                  float limit, float epsilon, float post_epsilon, int64_t heads) {
  const auto in = x.dimensions(), out = y->dimensions();
  if (in.size() != 2 || out.size() != 2) return ffi::Error::InvalidArgument("x and y have two dimensions");
  Product p{};
  p.x = x.typed_data();
  p.y = y->typed_data();
  p.rows = live_of(live, in[0]);
  if (heads < 1 || in[1] % heads != 0 || out[1] % heads != 0) return ffi::Error::InvalidArgument("rows do not divide among heads");
  if (heads > 1 && (norm || bias || post_norm || residual || beside || gate != UNGATED))
    return ffi::Error::InvalidArgument("matrices side by side have nothing around them");
  p.columns = in[1] / heads;
  p.outputs = out[1] / heads;
  p.heads = heads;
  p.epsilon = epsilon;
  p.post_epsilon = post_epsilon;
  if (gate < UNGATED || gate > RELU2) return ffi::Error::InvalidArgument("unknown gate");
  p.gate = static_cast<Gate>(gate);
  p.limit = limit;
  const int64_t sums = p.outputs * (p.gated() ? 2 : 1);
  Optional given(extra);
  p.norm = given.next(norm, p.columns);
  p.bias = given.next(bias, sums);
  p.post_norm = given.next(post_norm, p.outputs);
  p.residual = given.next(residual, in[0] * p.outputs);
  p.beside = given.next(beside, in[0] * sums);
  if (!given.fits()) return ffi::Error::InvalidArgument("norms, bias, residual and what stands beside are of other sizes");
  const int64_t tiles = heads * ((p.outputs + TILE - 1) / TILE) * (p.gated() ? 2 : 1);
  return with_weights(matrix, codes, group, half, offset, tiles, p.columns, [&](const auto& w) {
    if (p.rows > 0 && heads > 1) multiply_heads(p, w);
    else if (p.rows > 0) multiply(p, w);
    return ffi::Error::Success();
  });
}

ffi::Error rows(Ints tokens, Bytes matrix, Ints live, ffi::Result<Floats> y, int64_t codes, int64_t group, bool half, bool offset,
                int64_t tiles) {
  const int64_t columns = y->dimensions()[1];
  return with_weights(matrix, codes, group, half, offset, tiles, columns, [&](const auto& w) {
    const int64_t count = live_of(live, static_cast<int64_t>(tokens.element_count()));
    for (int64_t t = 0; t < count; ++t) {
      const int64_t token = tokens.typed_data()[t];
      if (token < 0 || token >= tiles * TILE) return ffi::Error::InvalidArgument("no such row");
      w.row(token, y->typed_data() + t * columns);
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

ffi::Error centred(Floats x, Ints live, ffi::Result<Floats> y) {
  const int64_t width = x.dimensions().back();
  const int64_t count = live_of(live, width > 0 ? static_cast<int64_t>(x.element_count()) / width : 0);
  for (int64_t r = 0; r < count; ++r) centre(x.typed_data() + r * width, width, y->typed_data() + r * width);
  return ffi::Error::Success();
}

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
                                  .Attr<bool>("beside")
                                  .Attr<int64_t>("gate")
                                  .Attr<float>("limit")
                                  .Attr<float>("epsilon")
                                  .Attr<float>("post_epsilon")
                                  .Attr<int64_t>("heads"));

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

XLA_FFI_DEFINE_HANDLER_SYMBOL(cortex_centre, cortex::guarded<cortex::centred>,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>());
