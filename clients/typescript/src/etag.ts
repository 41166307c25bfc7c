/**
 * A strong ETag: MurmurHash3_x86_128 of the bytes, which needs only 32-bit multiplications. It tells
 * versions of a resource apart; it does not withstand forgery.
 */
export function etagOf(bytes: Uint8Array): string {
  const state: Words = [0, 0, 0, 0];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const whole = bytes.length & ~15;
  for (let at = 0; at < whole; at += 16) mixBlock(state, view, at);
  if (whole < bytes.length) mixTail(state, bytes.subarray(whole));
  const hex = finish(state, bytes.length).map((word) => (word >>> 0).toString(16).padStart(8, "0"));
  return `"${hex.join("")}"`;
}

type Words = [number, number, number, number];

const C1 = 0x239b961b;
const C2 = 0xab0e9789;
const C3 = 0x38b34ae5;
const C4 = 0xa1e38b93;

function rotate(word: number, bits: number): number {
  return (word << bits) | (word >>> (32 - bits));
}

function scramble(word: number, by: number, bits: number, then: number): number {
  return Math.imul(rotate(Math.imul(word, by), bits), then);
}

function mixBlock(state: Words, view: DataView, at: number): void {
  let [h1, h2, h3, h4] = state;
  h1 ^= scramble(view.getInt32(at, true), C1, 15, C2);
  h1 = (Math.imul((rotate(h1, 19) + h2) | 0, 5) + 0x561ccd1b) | 0;
  h2 ^= scramble(view.getInt32(at + 4, true), C2, 16, C3);
  h2 = (Math.imul((rotate(h2, 17) + h3) | 0, 5) + 0x0bcaa747) | 0;
  h3 ^= scramble(view.getInt32(at + 8, true), C3, 17, C4);
  h3 = (Math.imul((rotate(h3, 15) + h4) | 0, 5) + 0x96cd1c35) | 0;
  h4 ^= scramble(view.getInt32(at + 12, true), C4, 18, C1);
  h4 = (Math.imul((rotate(h4, 13) + h1) | 0, 5) + 0x32ac3b17) | 0;
  state[0] = h1;
  state[1] = h2;
  state[2] = h3;
  state[3] = h4;
}

/** The last bytes, filled up with zeros, which scramble to zero. */
function mixTail(state: Words, tail: Uint8Array): void {
  const padded = new Uint8Array(16);
  padded.set(tail);
  const view = new DataView(padded.buffer);
  state[0] ^= scramble(view.getInt32(0, true), C1, 15, C2);
  state[1] ^= scramble(view.getInt32(4, true), C2, 16, C3);
  state[2] ^= scramble(view.getInt32(8, true), C3, 17, C4);
  state[3] ^= scramble(view.getInt32(12, true), C4, 18, C1);
}

function finish(state: Words, length: number): Words {
  const mixed = spread(state.map((word) => word ^ length) as Words);
  return spread(mixed.map(avalanche) as Words);
}

function spread([h1, h2, h3, h4]: Words): Words {
  const sum = (h1 + h2 + h3 + h4) | 0;
  return [sum, (h2 + sum) | 0, (h3 + sum) | 0, (h4 + sum) | 0];
}

function avalanche(word: number): number {
  let h = word;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}
