
// The activations of feed-forward blocks.

// Which: 0 silu, 1 gelu, 2 gelu in its tanh form, 3 quick gelu, 4 relu, 5 tanh.
const ACTIVATION: u32 = 0u;

// The exponent is clamped because WGSL leaves infinities undefined.
fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-clamp(x, -80.0, 80.0)));
}

// The normal distribution function, its erf by Abramowitz and Stegun 7.1.26.
fn normal_distribution(x: f32) -> f32 {
    let z = abs(x) * 0.70710678;
    let t = 1.0 / (1.0 + 0.3275911 * z);
    let poly = ((((1.0614054 * t - 1.453152) * t + 1.4214138) * t - 0.28449674) * t + 0.2548296) * t;
    let tail = 0.5 * poly * exp(-min(z * z, 80.0));
    return select(1.0 - tail, tail, x < 0.0);
}

// 2 sqrt(2/pi) (x + 0.044715 x^3)
fn tanh_argument(x: f32) -> f32 {
    return 1.5957692 * (x + 0.044715 * x * x * x);
}

fn activated(x: f32) -> f32 {
    switch ACTIVATION {
        case 1u: { return x * normal_distribution(x); }
        case 2u: { return x * sigmoid(tanh_argument(x)); }
        case 3u: { return x * sigmoid(1.702 * x); }
        case 4u: { return max(x, 0.0); }
        case 5u: { return 2.0 * sigmoid(2.0 * x) - 1.0; }
        default: { return x * sigmoid(x); }
    }
}
