//! Whole numbers from the random numbers that a clock gives.

/// The 53 random bits of a number in `0.0..1.0`: two such numbers are hardly ever the same.
pub fn bits(uniform: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "it lies between 0 and 2^53"
    )]
    let bits = (uniform * (1_u64 << 53) as f64) as u64;
    bits
}
