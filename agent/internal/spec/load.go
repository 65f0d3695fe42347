package spec

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Load parses and validates a configuration directory. It returns either a
// snapshot without a fault or every fault there is, as [Faults].
func Load(files Files) (*Snapshot, error) { return NewLoader().Load(files) }

// Loader loads a directory again and again. It remembers what it decoded, so that
// a change costs the parsing of the files that changed and no more. Its answers
// are those of [Load]. It is for one goroutine at a time.
type Loader struct {
	known  map[string]decoded
	shapes map[reflect.Type]shape
}

// decoded is what was read from a file without a fault. It never changes: all
// snapshots share it.
type decoded struct {
	sum     [sha256.Size]byte // of the file
	gateway Gateway
	peers   []Peer
}

// NewLoader returns a loader that remembers nothing.
func NewLoader() *Loader {
	return &Loader{known: map[string]decoded{}, shapes: map[reflect.Type]shape{}}
}

// Load is [Load].
func (m *Loader) Load(files Files) (*Snapshot, error) {
	l := loader{memory: m, files: files, roots: map[string]*yaml.Node{}}
	s := l.load()
	for file := range m.known {
		if _, still := files[file]; !still {
			delete(m.known, file)
		}
	}
	if len(l.faults) > 0 {
		l.faults.sort()
		return nil, l.faults
	}
	s.Warnings.sort()
	return s, nil
}

// loader is one loading.
type loader struct {
	memory *Loader
	files  Files
	roots  map[string]*yaml.Node // of documents with faults, to find their lines
	faults Faults
}

func (l *loader) load() *Snapshot {
	s := &Snapshot{Gateway: defaults()}
	var inline []Peer
	if _, ok := l.files[GatewayFile]; ok {
		doc := l.decode(GatewayFile)
		s.Gateway, inline = doc.gateway, doc.peers
	} else {
		l.faults = append(l.faults, Fault{File: GatewayFile, Problem: "missing", Fix: "mount the ConfigMap with gateway.yaml at config/"})
	}
	s.Peers = l.peers(inline)
	var keys, rotations Faults
	s.ServerKeys, keys = l.serverKeys()
	s.Rotations, rotations = l.rotations()
	s.Warnings = slices.Concat(keys, l.presharedKeys(s.Peers), rotations)

	l.validate(s)
	slices.SortFunc(s.Peers, func(a, b Peer) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// decode decodes a file, unless it is as it was the last time.
func (l *loader) decode(file string) decoded {
	out := decoded{sum: sha256.Sum256(l.files[file])}
	if known := l.memory.known[file]; known.sum == out.sum {
		return known
	}
	before := len(l.faults)
	d := decoder{file: file, faults: &l.faults, shapes: l.memory.shapes}
	if file == GatewayFile {
		doc := document{Gateway: defaults()}
		d.decode(l.files[file], &doc)
		out.gateway, out.peers = doc.Gateway, doc.Peers
	} else {
		var doc peersDocument
		d.decode(l.files[file], &doc)
		out.peers = doc.Peers
	}
	out.normalise(file)
	if len(l.faults) == before {
		l.memory.known[file] = out
	}
	return out
}

// peers gathers the peers of all files and refuses keys in the ConfigMap.
func (l *loader) peers(inline []Peer) []Peer {
	for i := range inline {
		if p := &inline[i]; !p.PresharedKey.IsZero() {
			l.fault(GatewayFile, at("peers", i, "presharedKey"), "", "a key in a ConfigMap, where anybody may read it",
				"move it to a Secret: file psk/<secret>/"+cmp.Or(p.Name, "<peer name>")+", or the whole peer to a Secret of peers.d")
		}
	}
	lists := [][]Peer{inline}
	for _, file := range sortedBelow(l.files, PeersDir) {
		switch path.Ext(file) {
		case ".yaml", ".yml":
			lists = append(lists, l.decode(file).peers)
		default:
			l.faults = append(l.faults, Fault{File: file, Problem: "not a .yaml file", Fix: "name the Secret's key like team-a.yaml"})
		}
	}
	return slices.Concat(lists...)
}

// normalise masks networks, so that equal ones compare equal, fills in what
// follows from other fields, and notes where each peer comes from.
func (d *decoded) normalise(file string) {
	r := &d.gateway.Routing
	if file == GatewayFile && r.AllowedDestinations == nil {
		r.AllowedDestinations = []Destination{{CIDR: netip.MustParsePrefix("0.0.0.0/0")}}
		if d.gateway.IPv6.Enabled {
			r.AllowedDestinations = append(r.AllowedDestinations, Destination{CIDR: netip.MustParsePrefix("::/0")})
		}
	}
	normaliseDestinations(r.AllowedDestinations)
	mask(r.Routes)
	for i := range d.peers {
		p := &d.peers[i]
		p.source = source{file, i}
		mask(p.AllowedIPs)
		normaliseDestinations(p.AllowedDestinations)
	}
}

func normaliseDestinations(ds []Destination) {
	for i := range ds {
		ds[i].CIDR = ds[i].CIDR.Masked()
		if ds[i].Protocol == "" {
			ds[i].Protocol = AnyProtocol
		}
	}
}

func mask(ps []netip.Prefix) {
	for i := range ps {
		ps[i] = ps[i].Masked()
	}
}

// fault adds one with the line of the field, or of what should have held it.
func (l *loader) fault(file string, where []any, value, problem, fix string) {
	l.faults = append(l.faults, Fault{
		File: file, Line: lineOf(l.root(file), where), Path: pathText(where),
		Value: value, Problem: problem, Fix: fix,
	})
}

// root parses a file once more: only faults need to know where things stand, and
// to keep all documents would take many times the memory of what they say.
func (l *loader) root(file string) *yaml.Node {
	root, known := l.roots[file]
	if !known {
		root, _ = rootOf(l.files[file]) // one that does not parse has no lines
		l.roots[file] = root
	}
	return root
}

// at is a path of field names (string) and list positions (int).
func at(elements ...any) []any { return elements }

func pathText(where []any) string {
	var p *fieldPath
	for _, e := range where {
		switch e := e.(type) {
		case string:
			p = &fieldPath{parent: p, name: e}
		case int:
			p = &fieldPath{parent: p, index: e}
		}
	}
	return p.String()
}

// lineOf finds the line of a field, or of the nearest node above it that is
// written.
func lineOf(n *yaml.Node, where []any) int {
	if n == nil {
		return 0
	}
	line := n.Line
	for _, e := range where {
		for n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		next := child(n, e)
		if next == nil {
			break
		}
		n, line = next, next.Line
	}
	return line
}

func child(n *yaml.Node, element any) *yaml.Node {
	switch e := element.(type) {
	case string:
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == e {
				return n.Content[i+1]
			}
		}
	case int:
		if n.Kind == yaml.SequenceNode && e < len(n.Content) {
			return n.Content[e]
		}
	}
	return nil
}

func sortedBelow(files Files, dir string) []string {
	var out []string
	for _, f := range slices.Sorted(maps.Keys(files)) {
		if strings.HasPrefix(f, dir) && !strings.HasSuffix(f, "/") {
			out = append(out, f)
		}
	}
	return out
}
