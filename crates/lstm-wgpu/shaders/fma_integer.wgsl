// fma by integers alone, for adapters that neither fuse nor have binary64: slow, and nothing in it is the compiler's to
// change. A 64-bit number is `vec2(low, high)`.

fn shift_left(x: vec2<u32>, n: u32) -> vec2<u32> {
    if (n >= 32u) { return vec2(0u, x.x << (n - 32u)); }
    if (n == 0u) { return x; }
    return vec2(x.x << n, (x.y << n) | (x.x >> (32u - n)));
}

// Shifts right; the lowest bit of the result is set if any bit was lost.
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

// The exact product of two numbers below 2^24.
fn product_of(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xfffu) * (b & 0xfffu);
    let middle = (a >> 12u) * (b & 0xfffu) + (a & 0xfffu) * (b >> 12u);
    let high = (a >> 12u) * (b >> 12u);
    return plus(plus(vec2(low, 0u), shift_left(vec2(middle, 0u), 12u)), shift_left(vec2(high, 0u), 24u));
}

// |x| as `significand * 2^(exponent - 150)`.
fn exponent_of(x: u32) -> i32 { return max(i32((x >> 23u) & 0xffu), 1); }

fn significand_of(x: u32) -> u32 {
    return (x & 0x7fffffu) | select(0u, 0x800000u, (x & 0x7f800000u) != 0u);
}

fn FMA(x: f32, y: f32, z: f32) -> f32 {
    let a = bitcast<u32>(x);
    let b = bitcast<u32>(y);
    let c = bitcast<u32>(z);
    let largest = max(max(a & 0x7fffffffu, b & 0x7fffffffu), c & 0x7fffffffu);
    if (largest >= 0x7f800000u) {
        // Infinite or NaN. (Where x y overflows and z is infinite, not as IEEE says; nothing is promised there.)
        return x * y + z;
    }
    let sign = (a ^ b) & 0x80000000u;
    let other = c & 0x80000000u;
    var p = product_of(significand_of(a), significand_of(b));
    var q = vec2(significand_of(c), 0u);
    let p_zero = (p.x | p.y) == 0u;
    if (p_zero) {
        // Both zero: the sum of zeros of unlike sign is +0.
        if (q.x == 0u) { return bitcast<f32>(sign & other); }
        return z;
    }
    // Both are brought to a leading bit 61, so that a sum fits.
    let p_shift = i32(leading_zeros(p)) - 2;
    p = shift_left(p, u32(p_shift));
    let p_exponent = exponent_of(a) + exponent_of(b) - 150 - p_shift;
    var exponent = p_exponent;
    if (q.x != 0u) {
        let q_shift = i32(leading_zeros(q)) - 2;
        q = shift_left(q, u32(q_shift));
        let q_exponent = exponent_of(c) - q_shift;
        if (p_exponent >= q_exponent) {
            q = shift_right_sticky(q, u32(p_exponent - q_exponent));
        } else {
            p = shift_right_sticky(p, u32(q_exponent - p_exponent));
            exponent = q_exponent;
        }
    }
    var sum = plus(p, q);
    var result_sign = sign;
    if (sign != other) {
        let flip = less(p, q);
        sum = minus(p, q);
        if (flip) {
            sum = minus(q, p);
            result_sign = other;
        }
        if ((sum.x | sum.y) == 0u) { return 0.0; }
    }
    // A leading bit 62, 24 bits above bit 39: value = sum * 2^(exponent - 150).
    let shift = i32(leading_zeros(sum)) - 1;
    sum = shift_left(sum, u32(shift));
    exponent -= shift;
    var biased = exponent + 39;
    if (biased < 1) {
        sum = shift_right_sticky(sum, u32(min(1 - biased, 64)));
        biased = 1;
    }
    // To nearest, ties to even.
    var kept = sum.y >> 7u;
    let rest = vec2(sum.x, sum.y & 0x7fu);
    let half = vec2(0u, 0x40u);
    if (less(half, rest) || (all(half == rest) && (kept & 1u) == 1u)) { kept += 1u; }
    // A carry out of the significand counts the exponent up by itself; a subnormal has no leading bit to add.
    let packed = min((u32(biased - 1) << 23u) + kept, 0x7f800000u);
    return bitcast<f32>(packed | result_sign);
}
