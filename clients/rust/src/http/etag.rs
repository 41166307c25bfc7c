//! The strong `ETag` of a body: `MurmurHash3` (x86, 128 bits, seed 0) over its bytes, as the clients of all
//! languages make it. It tells the versions of one resource apart; it does not withstand forgery.
//! The algorithm is Austin Appleby's: <https://github.com/aappleby/smhasher>.

const C: [u32; 4] = [0x239b_961b, 0xab0e_9789, 0x38b3_4ae5, 0xa1e3_8b93];
/// How far each word's input is rotated, which constant mixes it afterwards, and how the word itself goes on.
const INPUT_ROTATION: [u32; 4] = [15, 16, 17, 18];
const WORD_ROTATION: [u32; 4] = [19, 17, 15, 13];
const WORD_ADDEND: [u32; 4] = [0x561c_cd1b, 0x0bca_a747, 0x96cd_1c35, 0x32ac_3b17];

/// The header's value, quotes included.
pub(crate) fn etag(body: &[u8]) -> String {
    let [a, b, c, d] = murmur3(body);
    format!("\"{a:08x}{b:08x}{c:08x}{d:08x}\"")
}

fn murmur3(body: &[u8]) -> [u32; 4] {
    let mut hash = [0_u32; 4];
    let (blocks, tail) = body.as_chunks::<16>();
    for block in blocks {
        hash = with_block(hash, words(block));
    }
    let mut last = [0_u8; 16];
    last.iter_mut().zip(tail).for_each(|(to, from)| *to = *from);
    let [a, b, c, d] = hash;
    let [ka, kb, kc, kd] = mixed(words(&last)); // zero stays zero
    finished([a ^ ka, b ^ kb, c ^ kc, d ^ kd], body.len())
}

fn words(block: &[u8; 16]) -> [u32; 4] {
    let (words, _) = block.as_chunks::<4>();
    let mut all = [0; 4];
    all.iter_mut().zip(words).for_each(|(to, from)| *to = u32::from_le_bytes(*from));
    all
}

/// The input of each word, mixed with two neighbouring constants.
fn mixed(words: [u32; 4]) -> [u32; 4] {
    let [a, b, c, d] = words;
    let [c1, c2, c3, c4] = C;
    let [ra, rb, rc, rd] = INPUT_ROTATION;
    let mix = |word: u32, first: u32, rotation, second: u32| {
        word.wrapping_mul(first).rotate_left(rotation).wrapping_mul(second)
    };
    [mix(a, c1, ra, c2), mix(b, c2, rb, c3), mix(c, c3, rc, c4), mix(d, c4, rd, c1)]
}

fn with_block(hash: [u32; 4], block: [u32; 4]) -> [u32; 4] {
    let [mut a, mut b, mut c, mut d] = hash;
    let [ka, kb, kc, kd] = mixed(block);
    let [ra, rb, rc, rd] = WORD_ROTATION;
    let [na, nb, nc, nd] = WORD_ADDEND;
    let next = |word: u32, input: u32, rotation, neighbour: u32, addend| {
        let sum = (word ^ input).rotate_left(rotation).wrapping_add(neighbour);
        sum.wrapping_mul(5).wrapping_add(addend)
    };
    a = next(a, ka, ra, b, na);
    b = next(b, kb, rb, c, nb);
    c = next(c, kc, rc, d, nc);
    d = next(d, kd, rd, a, nd);
    [a, b, c, d]
}

fn finished(hash: [u32; 4], length: usize) -> [u32; 4] {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the algorithm takes 32 bits of the length"
    )]
    let length = length as u32;
    let all = hash.map(|word| word ^ length);
    summed(summed(all).map(scrambled))
}

fn summed([a, b, c, d]: [u32; 4]) -> [u32; 4] {
    let a = a.wrapping_add(b).wrapping_add(c).wrapping_add(d);
    [a, b.wrapping_add(a), c.wrapping_add(a), d.wrapping_add(a)]
}

fn scrambled(word: u32) -> u32 {
    let word = (word ^ (word >> 16)).wrapping_mul(0x85eb_ca6b);
    let word = (word ^ (word >> 13)).wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}
