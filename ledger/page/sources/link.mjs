// A bundle in a link: the fragment behind # is base64url (without padding) of the file's bytes,
// compressed as RFC 1950 has it; FORMAT.md, 6.1. A fragment stays in the browser.
import { concat, encodeBase64, latin1 } from "./bytes.mjs";
import { malformed } from "./errors.mjs";

const UNPACKED_BYTES_MAX = 1024 * 1024; // a few bytes could stand for gigabytes

/** Send bytes through a stream that compresses or expands; stop beyond `bytesMax`. */
async function through(stream, data, bytesMax) {
  const writer = stream.writable.getWriter();
  const written = writer.write(data).then(() => writer.close());
  written.catch(() => {}); // the reader meets the same error
  const parts = [];
  let length = 0;
  for (const reader = stream.readable.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return concat(...parts);
    parts.push(value);
    length += value.length;
    if (length > bytesMax) {
      reader.cancel().catch(() => {});
      throw new RangeError("too long");
    }
  }
}

/** Return the bundle's bytes that a fragment (without #) holds, else MalformedBundle. */
export async function fromFragment(text) {
  try {
    if (!/^[\w-]+$/.test(text)) throw new RangeError("no base64url");
    const packed = latin1(atob(text.replaceAll("-", "+").replaceAll("_", "/")));
    return await through(new DecompressionStream("deflate"), packed, UNPACKED_BYTES_MAX);
  } catch {
    const next = "ask for the bundle as a file";
    throw malformed("the link holds no bundle, or a part of it was lost on the way", { next });
  }
}

/** Return the fragment (without #) that holds a bundle's bytes. */
export async function asFragment(data) {
  const packed = await through(new CompressionStream("deflate"), data, UNPACKED_BYTES_MAX);
  return encodeBase64(packed).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
