// Keccak: Ethereum's Keccak-256, and SHAKE for ML-DSA-44 (FIPS 202). No browser has any of them.
// A lane of 64 bits is two numbers of 32: the low half of lane i at 2i, the high half at 2i + 1.

/** Round constants from the shift register of FIPS 202, section 3.2.5, low and high halves. */
const ROUNDS = (() => {
  const constants = new Int32Array(48);
  let register = 1;
  for (let round = 0; round < 24; round++) {
    for (let j = 0; j < 7; j++) {
      const bit = (1 << j) - 1;
      if (register & 1) constants[2 * round + (bit >> 5)] |= 1 << (bit & 31);
      register = (register << 1) ^ (register >> 7 ? 0x171 : 0);
    }
  }
  return constants;
})();

/** For each of rho's and pi's 24 moves: the lane written to, and by how far it is rotated. */
const [TARGETS, SHIFTS] = (() => {
  const [targets, shifts] = [new Int32Array(24), new Int32Array(24)];
  let [x, y] = [1, 0];
  for (let t = 0; t < 24; t++) {
    [x, y] = [y, (2 * x + 3 * y) % 5];
    targets[t] = x + 5 * y;
    shifts[t] = (((t + 1) * (t + 2)) / 2) % 64;
  }
  return [targets, shifts];
})();

const columns = new Int32Array(10);

/** Keccak-f[1600] in place: theta, rho and pi together, chi, iota, 24 times. */
function permute(s) {
  for (let round = 0; round < 48; round += 2) {
    for (let x = 0; x < 10; x++) columns[x] = s[x] ^ s[x + 10] ^ s[x + 20] ^ s[x + 30] ^ s[x + 40];
    for (let x = 0; x < 10; x += 2) {
      const [left, right] = [(x + 8) % 10, (x + 2) % 10];
      const [low, high] = [columns[right], columns[right + 1]];
      const dLow = columns[left] ^ ((low << 1) | (high >>> 31));
      const dHigh = columns[left + 1] ^ ((high << 1) | (low >>> 31));
      for (let y = x; y < 50; y += 10) {
        s[y] ^= dLow;
        s[y + 1] ^= dHigh;
      }
    }
    let low = s[2];
    let high = s[3];
    for (let t = 0; t < 24; t++) {
      const to = 2 * TARGETS[t];
      const shift = SHIFTS[t] & 31;
      if (SHIFTS[t] & 32) [low, high] = [high, low];
      const turnedLow = shift ? (low << shift) | (high >>> (32 - shift)) : low;
      const turnedHigh = shift ? (high << shift) | (low >>> (32 - shift)) : high;
      low = s[to];
      high = s[to + 1];
      s[to] = turnedLow;
      s[to + 1] = turnedHigh;
    }
    for (let y = 0; y < 50; y += 10) {
      for (let x = 0; x < 10; x++) columns[x] = s[y + x];
      for (let x = 0; x < 10; x++) s[y + x] ^= ~columns[(x + 2) % 10] & columns[(x + 4) % 10];
    }
    s[0] ^= ROUNDS[round];
    s[1] ^= ROUNDS[round + 1];
  }
}

/** The sponge: takes all of `data`, then gives blocks of `rate` bytes, as many as are asked for. */
class Sponge {
  constructor(rate, suffix, data) {
    this.rate = rate;
    this.state = new Int32Array(50);
    const blocks = new Uint8Array((Math.floor(data.length / rate) + 1) * rate);
    blocks.set(data);
    blocks[data.length] = suffix;
    blocks[blocks.length - 1] |= 0x80;
    const view = new DataView(blocks.buffer);
    for (let at = 0; at < blocks.length; at += rate) {
      if (at) permute(this.state);
      for (let i = 0; i < rate / 4; i++) this.state[i] ^= view.getInt32(at + 4 * i, true);
    }
  }

  block() {
    permute(this.state);
    const view = new DataView(new ArrayBuffer(this.rate));
    for (let i = 0; i < this.rate / 4; i++) view.setInt32(4 * i, this.state[i], true);
    return new Uint8Array(view.buffer);
  }
}

/** Hash bytes, 32 bytes; the padding 0x01 … 0x80 of the Keccak submission. */
export const keccak256 = (data) => new Sponge(136, 0x01, data).block().slice(0, 32);

/** SHAKE128 of `data`, as a source of blocks of 168 bytes. */
export const shake128 = (data) => new Sponge(168, 0x1f, data);

/** SHAKE256 of `data`, as a source of blocks of 136 bytes. */
export const shake256 = (data) => new Sponge(136, 0x1f, data);
