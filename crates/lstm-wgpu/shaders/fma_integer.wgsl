// fma emulated with 32-bit integers, for adapters whose fma is not fused and that lack f64. It is slow, but no compiler
// may change its result. A 64-bit integer is `vec2(low, high)`.

fn shift_left(x: vec2<u32>, n: u32) -> vec2<u32> {
    if (n >= 32u) { return vec2(0u, x.x << (n - 32u)); }
    if (n == 0u) { return x; }
    return vec2(x.x << n, (x.y << n) | (x.x >> (32u - n)));
}

// Shifts right. The lowest bit of the result is also set if any bit that is shifted out was set.
fn shift_right_sticky(x: vec2<u32>, n: u32) -> vec2<u32> {
    if (n == 0u) { return x; }
    if (n >= 64u) { return vec2(select(0u, 1u, (x.x | x.y) != 0u), 0u); }
    if (n >= 32u) {
        let m = n - 32u;
        let lost = x.x != 0u || (m > 0u && (x.y << (32u - m)) != 0u);
        return vec2((x.y >> m) | select(0u, 1u, lost), 0u);
    }
    let lost = (x.x << (32u - n)) != 0u;
    return vec2((x.x >> n) | (x.y << (32u - n)) | select(0u, 1u, lost), x.y >> n);
}

fn leading_zeros(x: vec2<u32>) -> u32 {
    return select(countLeadingZeros(x.y), 32u + countLeadingZeros(x.x), x.y == 0u);
}

fn less(a: vec2<u32>, b: vec2<u32>) -> bool { return a.y < b.y || (a.y == b.y && a.x < b.x); }

fn plus(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn minus(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

// Exact 64-bit product of two integers below 2^24.
fn wide_product(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xfffu) * (b & 0xfffu);
    let middle = (a >> 12u) * (b & 0xfffu) + (a & 0xfffu) * (b >> 12u);
    let high = (a >> 12u) * (b >> 12u);
    return plus(plus(vec2(low, 0u), shift_left(vec2(middle, 0u), 12u)), shift_left(vec2(high, 0u), 24u));
}

// Exponent of |x| = significand * 2^(exponent - 150), given the bits of x.
fn exponent_of(x: u32) -> i32 { return max(i32((x >> 23u) & 0xffu), 1); }

// Significand of |x| = significand * 2^(exponent - 150), given the bits of x.
fn significand_of(x: u32) -> u32 {
    return (x & 0x7fffffu) | select(0u, 0x800000u, (x & 0x7f800000u) != 0u);
}

fn FMA(x: f32, y: f32, z: f32) -> f32 {
    let a = bitcast<u32>(x);
    let b = bitcast<u32>(y);
    let c = bitcast<u32>(z);
    let largest = max(max(a & 0x7fffffffu, b & 0x7fffffffu), c & 0x7fffffffu);
    if (largest >= 0x7f800000u) {
        // Infinity or NaN. If x y overflows and z is infinite, the result differs from IEEE 754. The specification does
        // not cover overflow.
        return x * y + z;
    }
    let product_sign = (a ^ b) & 0x80000000u;
    let addend_sign = c & 0x80000000u;
    var product = wide_product(significand_of(a), significand_of(b));
    var addend = vec2(significand_of(c), 0u);
    let product_is_zero = (product.x | product.y) == 0u;
    if (product_is_zero) {
        // Both terms are zero. The sum of two zeros of opposite sign is +0.
        if (addend.x == 0u) { return bitcast<f32>(product_sign & addend_sign); }
        return z;
    }
    // Shift both terms so that their leading bit is bit 61. Then the sum fits into 64 bits.
    let product_shift = i32(leading_zeros(product)) - 2;
    product = shift_left(product, u32(product_shift));
    let product_exponent = exponent_of(a) + exponent_of(b) - 150 - product_shift;
    var exponent = product_exponent;
    if (addend.x != 0u) {
        let addend_shift = i32(leading_zeros(addend)) - 2;
        addend = shift_left(addend, u32(addend_shift));
        let addend_exponent = exponent_of(c) - addend_shift;
        if (product_exponent >= addend_exponent) {
            addend = shift_right_sticky(addend, u32(product_exponent - addend_exponent));
        } else {
            product = shift_right_sticky(product, u32(addend_exponent - product_exponent));
            exponent = addend_exponent;
        }
    }
    var sum = plus(product, addend);
    var result_sign = product_sign;
    if (product_sign != addend_sign) {
        let addend_is_larger = less(product, addend);
        sum = minus(product, addend);
        if (addend_is_larger) {
            sum = minus(addend, product);
            result_sign = addend_sign;
        }
        if ((sum.x | sum.y) == 0u) { return 0.0; }
    }
    // Shift the sum so that its leading bit is bit 62. The 24 bits from bit 39 up are the significand, and
    // value = sum * 2^(exponent - 150).
    let shift = i32(leading_zeros(sum)) - 1;
    sum = shift_left(sum, u32(shift));
    exponent -= shift;
    var biased = exponent + 39;
    if (biased < 1) {
        sum = shift_right_sticky(sum, u32(min(1 - biased, 64)));
        biased = 1;
    }
    // Round to nearest, ties to even.
    var kept = sum.y >> 7u;
    let rest = vec2(sum.x, sum.y & 0x7fu);
    let half = vec2(0u, 0x40u);
    if (less(half, rest) || (all(half == rest) && (kept & 1u) == 1u)) { kept += 1u; }
    // A carry out of the significand increments the exponent. A subnormal has no implicit leading bit, so adding `kept`
    // to a zero exponent field is right for it too.
    let packed = min((u32(biased - 1) << 23u) + kept, 0x7f800000u);
    return bitcast<f32>(packed | result_sign);
}
