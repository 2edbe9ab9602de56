"""What is read of a program, held to programs small enough to count by eye."""

from neuron_jax.deviceless.census import Census, Launch, census
from neuron_jax.deviceless.hlo import ArrayShape, parse

V = 1000
STEP = """\
HloModule jit__step, is_scheduled=true, input_output_alias={ {0}: (1, {}, may-alias) }

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%looked_up (table: bf16[1000,64], ids: s32[1]) -> bf16[1,64] {
  %table = bf16[1000,64]{1,0} parameter(0)
  %ids = s32[1]{0} parameter(1)
  ROOT %rows = bf16[1,64]{1,0} gather(%table, %ids), offset_dims={1}, slice_sizes={1,64}
}

%product (x: bf16[4,64], w: bf16[64,64]) -> f32[4,64] {
  %x = bf16[4,64]{1,0} parameter(0)
  %w = bf16[64,64]{1,0} parameter(1)
  ROOT %dot = f32[4,64]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%stored (pool: bf16[512,64], new: bf16[1,64], at: s32[]) -> bf16[512,64] {
  %pool = bf16[512,64]{1,0} parameter(0)
  %new = bf16[1,64]{1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %put = bf16[512,64]{1,0} dynamic-update-slice(%pool, %new, %at, %at)
}

%wider (w: s8[1024,2048]) -> bf16[1024,2048] {
  %w = s8[1024,2048]{1,0} parameter(0)
  ROOT %c = bf16[1024,2048]{1,0} convert(%w)
}

%body (state: (s32[], f32[4,1000])) -> (s32[], f32[4,1000]) {
  %state = (s32[], f32[4,1000]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %l = f32[4,1000]{1,0} get-tuple-element(%state), index=1
  %s = f32[4,1000]{1,0} sort(%l), dimensions={1}, to_apply=%add
  ROOT %next = (s32[], f32[4,1000]{1,0}) tuple(%i, %s)
}

%until (state: (s32[], f32[4,1000])) -> pred[] {
  %state = (s32[], f32[4,1000]{1,0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

%few (l: (f32[4,1000])) -> f32[] {
  %l = (f32[4,1000]{1,0}) parameter(0)
  ROOT %zero = f32[] constant(0)
}

%many (l: (f32[4,1000])) -> f32[] {
  %l = (f32[4,1000]{1,0}) parameter(0)
  %g = f32[4,1000]{1,0} get-tuple-element(%l), index=0
  %sum1 = f32[] reduce(%g, %g), to_apply=%add
  ROOT %sum2 = f32[] add(%sum1, %sum1)
}

ENTRY %main (p0: bf16[1000,64], p1: bf16[512,64], p2: bf16[64,64], p3: s32[1], p4: s8[1024,2048]) -> (bf16[512,64], f32[]) {
  %p0 = bf16[1000,64]{1,0} parameter(0), metadata={op_name="params[\\'embed\\'][\\'kernel\\']"}
  %p1 = bf16[512,64]{1,0} parameter(1), metadata={op_name="state.pool[0][0]"}
  %p2 = bf16[64,64]{1,0} parameter(2), metadata={op_name="params[\\'layers\\'][0][\\'out\\'][\\'kernel\\']"}
  %p3 = s32[1]{0} parameter(3), metadata={op_name="packed"}
  %p4 = s8[1024,2048]{1,0} parameter(4), metadata={op_name="params[\\'layers\\'][1][\\'up\\'][\\'kernel\\']"}
  %rows = bf16[1,64]{1,0} fusion(%p0, %p3), kind=kLoop, calls=%looked_up
  %scalar = s32[] bitcast(%p3)
  %pool = bf16[512,64]{1,0} fusion(%p1, %rows, %scalar), kind=kLoop, calls=%stored
  %turned = (bf16[512,64]{1,0}, bf16[1,64]{1,0}) custom-call(%rows, %pool), STORE
  %kept = bf16[512,64]{1,0} get-tuple-element(%turned), index=0
  %x = bf16[4,64]{1,0} custom-call(%kept, %rows), custom_call_target="attention"
  %y = f32[4,64]{1,0} fusion(%x, %p2), kind=kCustom, calls=%product
  %sent = (f32[4,64]{1,0}, f32[4,64]{1,0}) all-reduce-start(%y), to_apply=%add
  %got = f32[4,64]{1,0} all-reduce-done(%sent)
  %wide = bf16[1024,2048]{1,0} fusion(%p4), kind=kLoop, calls=%wider
  %again = s8[1024,2048]{1,0} copy(%p4)
  %logits = f32[4,1000]{1,0} custom-call(%got), custom_call_target="head"
  %init = (s32[], f32[4,1000]{1,0}) tuple(%scalar, %logits)
  %loop = (s32[], f32[4,1000]{1,0}) while(%init), condition=%until, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %loop2 = (s32[], f32[4,1000]{1,0}) while(%init), condition=%until, body=%body
  %sorted = f32[4,1000]{1,0} get-tuple-element(%loop), index=1
  %one = (f32[4,1000]{1,0}) tuple(%sorted)
  %choice = f32[] conditional(%scalar, %one, %one), branch_computations={%many, %few}
  ROOT %out = (bf16[512,64]{1,0}, f32[]) tuple(%pool, %choice)
}
""".replace("STORE", 'custom_call_target="store", output_to_operand_aliasing={{0}: (1, {})}')


def read() -> Census:
    return census(parse(STEP), V)


def test_kernels_in_order_and_how_often_each_runs() -> None:
    found = [(kernel.what, kernel.times) for kernel in read().kernels]

    assert found == [
        ("fusion", 1),
        ("fusion", 1),
        ("store", 1),
        ("attention", 1),
        ("gemm", 1),
        ("all-reduce", 1),
        ("fusion", 1),
        ("copy", 1),
        ("head", 1),
        ("sort", 3),
        ("while", 1),  # nobody knows how often
        ("sort", 1),
        ("conditional", 1),  # and of the choice the branch without kernels
    ]
    assert read().launches == 13


def test_bytes_are_those_that_are_read_and_written() -> None:
    rows, stored, turned, attention, product, *_ = read().kernels

    assert rows.moved == 128 + 4 + 128  # of the table one row
    assert stored.moved == 128 + 4 + 128  # written in place: the pool itself is neither read nor written
    assert stored.pool
    assert turned.moved == 128 + 128  # a kernel that writes into the pool
    assert attention.moved == 128 + 512  # and what the texts have in the pool, which is reckoned by their lengths
    assert attention.arguments == ("state.pool[0][0]",)
    assert (product.flops, product.dtype) == (2 * 4 * 64 * 64, "bf16")
    assert product.weights == 64 * 64 * 2


def test_layers_begin_with_what_is_read_of_them() -> None:
    parts = read().parts()

    assert [kernel.what for kernel in parts.before] == ["fusion", "fusion", "store", "attention"]
    assert [[kernel.what for kernel in layer] for layer in parts.layers] == [["gemm", "all-reduce"], ["fusion", "copy"]]
    assert [kernel.what for kernel in parts.behind] == ["head", "sort", "while", "sort", "conditional"]


def test_what_runs_beside_a_layer_is_not_of_it() -> None:
    """XLA looks up what the step was told while devices exchange a sum; what only goes on with the layer's values is of it."""

    def launch(name: str, *arguments: str, weights: int = 0) -> Launch:
        return Launch(name, "fusion", 1, weights, 0, "", 0, 1, arguments, wide=False)

    up, down = (launch(f"params{n}", f"params['layers'][{n}]['up']", weights=1) for n in range(2))
    told, stored, added = launch("told", "state.lines", "packed"), launch("stored", "state.pool[0]"), launch("added")
    parts = Census(
        (up, stored, down, told, added, launch("head", "params['head']", weights=1)), 0, 0, 0, (), ()
    ).parts()

    assert (parts.before, parts.layers) == ((told,), ((up, stored), (down, added)))
    assert [kernel.name for kernel in parts.behind] == ["head"]


def test_what_should_not_be_there() -> None:
    found = read()

    assert (found.conditionals, found.loops, found.sorts) == (1, 1, 1)
    assert found.copies == ("params['layers'][1]['up']['kernel']",)
    assert found.widened == ("params['layers'][1]['up']['kernel']",)
    assert found.collectives == {"all-reduce": 1}
    assert found.wide == 5  # the head and four sorts


def test_types_as_hlo_writes_them() -> None:
    module = parse(STEP)

    assert module.aliased == {1}
    assert module.entry.by_name["sent"].shapes == (ArrayShape("f32", (4, 64)), ArrayShape("f32", (4, 64)))
    assert [ArrayShape(kind, (3,)).nbytes for kind in ("s4", "pred", "bf16", "f8e4m3fn", "s32")] == [2, 3, 6, 3, 12]


OURS = """HloModule jit_step, is_scheduled=true

ENTRY %main (p0: bf16[4,64], p1: u8[96,32]) -> (bf16[4,96], bf16[4,96], bf16[8,96], bf16[2,96]) {
  %p0 = bf16[4,64]{1,0} parameter(0), metadata={op_name="packed"}
  %p1 = u8[96,32]{1,0} parameter(1), metadata={op_name="params[\\'layers\\'][0][\\'up\\'][\\'kernel\\']"}
  %p2 = f16[96,2]{1,0} parameter(2), metadata={op_name="params[\\'layers\\'][0][\\'up\\'][\\'scale\\']"}
  %p3 = bf16[8,64,96]{2,1,0} parameter(3), metadata={op_name="params[\\'layers\\'][0][\\'experts\\'][\\'kernel\\']"}
  %p4 = s32[4,2]{1,0} parameter(4), metadata={op_name="packed"}
  %one = bf16[4,96]{1,0} custom-call(%p0, %p1, %p2, %p2), AIM, metadata={op_name="jit(_traced)/int4_rows/pallas_call"}
  %five = u8[96,2]{1,0} parameter(5), metadata={op_name="params[\\'layers\\'][0][\\'up\\'][\\'scale\\']"}
  %float = bf16[4,96]{1,0} custom-call(%p0, %p1, %five), AIM, metadata={op_name="jit(_traced)/mxfp4_rows/pallas_call"}
  %some = bf16[8,96]{1,0} custom-call(%p0, %p4, %p3), AIM, metadata={op_name="jit(_traced)/float_experts_6_of_8_16/pallas_call"}
  %two = bf16[2,96]{1,0} custom-call(%p0, %p4, %p3), AIM, metadata={op_name="jit(_traced)/float_experts_2_of_8_1/pallas_call"}
  %six = s32[129,4096]{1,0} parameter(6), metadata={op_name="state.lines"}
  %mixed = bf16[4,64]{1,0} custom-call(%p0, %six), AIM, metadata={op_name="jit(_traced)/paged_attention/pallas_call"}
  ROOT %out = (bf16[4,96]{1,0}, bf16[4,96]{1,0}, bf16[8,96]{1,0}, bf16[2,96]{1,0}) tuple(%one, %float, %some, %two)
}
""".replace("AIM", 'custom_call_target="__gpu$xla.gpu.triton"')


def test_products_of_ours_are_known_by_their_names() -> None:
    """Codes of 4 bits are two weights each; of a stack, no more is read than is chosen."""
    narrow, floats, some, alone, mixed = census(parse(OURS), V).kernels
    expert = 64 * 96

    assert (narrow.flops, narrow.dtype) == (2 * 4 * 64 * 96, "bf16")
    assert mixed.moved == 2 * 4 * 64 * 2  # of all slots' pages it reads those of its rows
    assert (floats.flops, floats.weights) == (narrow.flops, 96 * 32 + 96 * 2)
    assert narrow.weights == 96 * 32 + 2 * 96 * 2 * 2
    assert (some.flops, some.weights) == (2 * 8 * expert, 6 * expert * 2)
    assert (alone.flops, alone.weights) == (2 * 2 * expert, 2 * expert * 2)
