// Command read_log verifies an exported log with golang.org/x/mod/sumdb, which shares no code
// with this project: note signature, every tile and entry, and proofs between them.
package main

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type dir string

func (d dir) Height() int                            { return 8 }
func (d dir) SaveTiles(t []tlog.Tile, data [][]byte) {}
func (d dir) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var out [][]byte
	for _, t := range tiles {
		// x/mod has tile/8/L/N, tlog-tiles tile/L/N
		data, err := os.ReadFile(filepath.Join(string(d), strings.Replace(t.Path(), "tile/8/", "tile/", 1)))
		if err != nil {
			return nil, err
		}
		out = append(out, data)
	}
	return out, nil
}

func entries(d string, size int64) [][]byte {
	var all [][]byte
	for n := int64(0); n*256 < size; n++ {
		w := size - n*256
		if w > 256 {
			w = 256
		}
		t := tlog.Tile{H: 8, L: 0, N: n, W: int(w)}
		path := strings.Replace(t.Path(), "tile/8/0/", "tile/entries/", 1)
		data, err := os.ReadFile(filepath.Join(d, path))
		check(err)
		for i := int64(0); i < w; i++ {
			l := int(binary.BigEndian.Uint16(data))
			all = append(all, data[2:2+l])
			data = data[2+l:]
		}
		if len(data) != 0 {
			check(fmt.Errorf("%s: trailing bytes", path))
		}
	}
	return all
}

func main() {
	d := os.Args[1]
	vkeys, err := os.ReadFile(filepath.Join(d, "vkey"))
	check(err)
	v, err := note.NewVerifier(strings.Split(string(vkeys), "\n")[0])
	check(err)
	msg, err := os.ReadFile(filepath.Join(d, "checkpoint"))
	check(err)
	n, err := note.Open(msg, note.VerifierList(v))
	check(err)
	lines := strings.Split(n.Text, "\n")
	if lines[0] != v.Name() {
		check(fmt.Errorf("origin %s", lines[0]))
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	raw, err := base64.StdEncoding.DecodeString(lines[2])
	check(err)
	var root tlog.Hash
	copy(root[:], raw)
	tree := tlog.Tree{N: size, Hash: root}
	reader := tlog.TileHashReader(tree, dir(d)) // authenticates each tile against the root
	all := entries(d, size)
	indexes := make([]int64, size)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, int64(i))
	}
	hashes, err := reader.ReadHashes(indexes)
	check(err)
	for i, e := range all {
		if tlog.RecordHash(e) != hashes[i] {
			check(fmt.Errorf("entry %d", i))
		}
	}
	for _, i := range []int64{0, size / 2, size - 1} {
		p, err := tlog.ProveRecord(size, i, reader)
		check(err)
		check(tlog.CheckRecord(p, size, root, i, hashes[i]))
	}
	for _, old := range []int64{1, size/2 + 1, size} {
		h, err := tlog.TreeHash(old, reader)
		check(err)
		p, err := tlog.ProveTree(size, old, reader)
		check(err)
		check(tlog.CheckTree(p, size, root, old, h))
	}
	fmt.Printf("%s: %d entries, %d signatures, accepted\n", lines[0], size, len(n.Sigs)+len(n.UnverifiedSigs))
}
