package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// form is one way in which a key can stand in an output.
type form struct {
	name string
	text []byte
	// fold says that text is lower case and matches any case.
	fold bool
}

// forms returns the ways in which programs print the 32 bytes of a key: as they
// are, in hex (the WireGuard UAPI), in base64 (wg), in base64 of the base64 (the
// data of a Kubernetes Secret), alone or within a longer encoded text, and as
// Go prints a slice of bytes.
func forms(key []byte) []form {
	text := base64.StdEncoding.EncodeToString(key)
	decimals := strings.Trim(fmt.Sprint(key), "[]")
	list := []form{
		{name: "raw bytes", text: key},
		{name: "hex", text: []byte(hex.EncodeToString(key)), fold: true},
		{name: "decimal bytes", text: []byte(decimals)},
		{name: "decimal bytes in JSON", text: []byte(strings.ReplaceAll(decimals, " ", ","))},
		{name: "Go syntax", text: []byte(strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", key), "[]byte{"), "}"))},
	}
	list = append(list, encoded("base64", key)...)
	return append(list, encoded("base64 in base64", []byte(text))...)
}

// encoded returns what is the same in every base64 text whose source holds b: a
// form for each of the three offsets at which b can start in a group of three
// bytes, less the characters that b shares with its neighbours, in the standard
// and in the URL alphabet where they differ.
func encoded(name string, b []byte) []form {
	var list []form
	for offset := range 3 {
		padded := append(make([]byte, offset), b...)
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := encoding.EncodeToString(padded)
			// Characters of 6 bits that lie in b whole.
			first, last := (offset*8+5)/6, len(padded)*8/6
			f := form{name: name, text: []byte(text[first:last])}
			if n := len(list); n > 0 && bytes.Equal(list[n-1].text, f.text) {
				continue
			}
			list = append(list, f)
		}
	}
	return list
}

// windowLen is how many bytes of a form are looked up at once.
const windowLen = 8

// candidate is a form of the key of that number.
type candidate struct {
	form
	key int
}

// searcher finds many keys in one pass: the first bytes of every form are the
// index to the forms that start so.
type searcher struct {
	exact, folded map[uint64][]candidate
}

func newSearcher(keys [][]byte) searcher {
	s := searcher{exact: map[uint64][]candidate{}, folded: map[uint64][]candidate{}}
	for n, key := range keys {
		for _, f := range forms(key) {
			index := s.exact
			if f.fold {
				index = s.folded
			}
			window := binary.BigEndian.Uint64(f.text)
			index[window] = append(index[window], candidate{form: f, key: n})
		}
	}
	return s
}

// hit is a form of the key of that number, found in that line (from 1).
type hit struct {
	line, key int
	form      string
}

// search returns every hit in content, in the order of their places.
func (s searcher) search(content []byte) []hit {
	var hits []hit
	var window, foldedWindow uint64
	line := 1 // of the window's first byte
	for end, b := range content {
		window = window<<8 | uint64(b)
		foldedWindow = foldedWindow<<8 | uint64(lower(b))
		start := end - windowLen + 1
		if start < 0 {
			continue
		}
		if start > 0 && content[start-1] == '\n' {
			line++
		}
		rest := content[start:]
		for _, c := range s.exact[window] {
			if bytes.HasPrefix(rest, c.text) {
				hits = append(hits, hit{line: line, key: c.key, form: c.name})
			}
		}
		for _, c := range s.folded[foldedWindow] {
			if len(rest) >= len(c.text) && bytes.Equal(bytes.ToLower(rest[:len(c.text)]), c.text) {
				hits = append(hits, hit{line: line, key: c.key, form: c.name})
			}
		}
	}
	return hits
}

// lower folds the case of ASCII, as hex needs.
func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}
