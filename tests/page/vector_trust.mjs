/** What a vector's `input` says to trust, as the kernel wants it; read by Node and by Chromium. */
export function trustOf({ keys = [], on_chain, chain, ...more }, VerifierKey) {
  const unhex = (text) => Uint8Array.from(text.match(/../g) ?? [], (x) => parseInt(x, 16));
  const said = (x) => ({ treeSize: BigInt(x.tree_size), root: unhex(x.root), where: "a test" });
  const block = (x) => ({
    chainId: BigInt(x.chain_id), number: BigInt(x.number), hash: unhex(x.hash), by: "a test",
  });
  return {
    keys: keys.map((key) => new VerifierKey(key)),
    needAnchor: more.need_anchor ?? false,
    acceptUnpinned: more.accept_unpinned ?? false,
    acceptUnanchored: more.accept_unanchored ?? false,
    onChain: on_chain?.map(said) ?? null,
    chain: chain && {
      chainId: BigInt(chain.chain_id),
      contract: unhex(chain.contract),
      publisher: unhex(chain.publisher),
      logId: unhex(chain.log_id),
      codeHash: unhex(chain.code_hash),
      addressBindsCode: chain.address_binds_code ?? false,
      blocks: chain.blocks.map(block),
    } || null,
  };
}
