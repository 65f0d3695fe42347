package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// decoder turns a YAML node into a struct and reports every unknown field,
// duplicate key and wrong type on the way. The yaml package's own strict mode
// knows neither paths nor fixes, and its errors quote values that may be keys.
type decoder struct {
	file   string
	faults *Faults
	shapes map[reflect.Type]shape // of the structs met so far
}

// shape is the fields of a struct by their names in YAML.
type shape map[string]shapeField

type shapeField struct {
	number int   // from 0, in no order
	index  []int // for reflect.Value.FieldByIndex
}

// fieldPath is the way from the document to a node; it becomes text for faults only.
type fieldPath struct {
	parent *fieldPath
	name   string // of a field
	index  int    // of an element, where name is empty
}

func (p *fieldPath) String() string {
	switch {
	case p == nil:
		return ""
	case p.name == "":
		return p.parent.String() + "[" + strconv.Itoa(p.index) + "]"
	case p.parent == nil:
		return p.name
	default:
		return p.parent.String() + "." + p.name
	}
}

// decode fills out (a pointer to struct) from one YAML document. What the
// document leaves out or writes as null keeps its value.
func (d *decoder) decode(content []byte, out any) {
	root, err := rootOf(content)
	switch {
	case err != nil:
		d.add(Fault{Problem: "not YAML: " + strings.TrimPrefix(err.Error(), "yaml: "), Fix: "check the syntax near that line"})
	case root == nil:
		// Between truncating and writing, that's what every file is.
		d.add(Fault{Problem: "empty", Fix: "write 'peers: []' where there are no peers"})
	default:
		d.value(root, reflect.ValueOf(out).Elem(), nil)
	}
}

// rootOf parses the one document of a file; the root of an empty one is nil.
func rootOf(content []byte) (*yaml.Node, error) {
	documents := yaml.NewDecoder(bytes.NewReader(content))
	var doc, more yaml.Node
	if err := documents.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := documents.Decode(&more); err == nil {
		return nil, fmt.Errorf("yaml: line %d: a second document begins, and it would be ignored", more.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(doc.Content) == 0 {
		return nil, nil //nolint:nilnil // there is no root, and nothing is wrong with that
	}
	return doc.Content[0], nil
}

func (d *decoder) add(f Fault) {
	f.File = d.file
	*d.faults = append(*d.faults, f)
}

func (d *decoder) wrongType(n *yaml.Node, at *fieldPath, want string) {
	f := Fault{Line: n.Line, Path: at.String(), Problem: "is " + kindName(n) + ", not " + want, Fix: "write " + want}
	if n.Kind == yaml.ScalarNode {
		f.Value = show(n.Value)
	}
	d.add(f)
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, at *fieldPath) {
	if n.Kind == yaml.AliasNode {
		// A few nested ones stand for more than fits into memory.
		d.add(Fault{Line: n.Line, Path: at.String(), Problem: "an alias", Fix: "write out what it stands for"})
		return
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return
	}
	if f, ok := scalar(v.Addr().Interface(), n.Value); ok {
		if f == nil && n.Kind == yaml.ScalarNode {
			f = checkTag(n, v.Type())
		}
		switch {
		case n.Kind != yaml.ScalarNode:
			d.wrongType(n, at, typeName(v.Type()))
		case f != nil:
			f.Line, f.Path = n.Line, at.String()
			d.add(*f)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, v, at)
	case reflect.Slice:
		d.sequence(n, v, at)
	default:
		panic("spec: no decoder for " + v.Type().String()) //nolint:forbidigo // a field was added without one; the first test says so
	}
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, at *fieldPath) {
	if n.Kind != yaml.MappingNode {
		d.wrongType(n, at, "a mapping")
		return
	}
	fields := d.fieldsOf(v.Type())
	lines := make([]int, len(fields)) // where each was written first
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		field, ok := fields[k.Value]
		if !ok {
			here := fieldPath{parent: at, name: show(k.Value)}
			d.add(Fault{Line: k.Line, Path: here.String(), Problem: "unknown field", Fix: suggest(k.Value, fields)})
			continue
		}
		here := fieldPath{parent: at, name: k.Value}
		if first := lines[field.number]; first > 0 {
			d.add(Fault{Line: k.Line, Path: here.String(), Problem: fmt.Sprintf("written twice, first on line %d", first), Fix: "keep one"})
			continue
		}
		lines[field.number] = k.Line
		d.value(n.Content[i+1], v.FieldByIndex(field.index), &here)
	}
}

func (d *decoder) sequence(n *yaml.Node, v reflect.Value, at *fieldPath) {
	if n.Kind != yaml.SequenceNode {
		d.wrongType(n, at, "a list")
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		here := fieldPath{parent: at, index: i}
		d.value(c, out.Index(i), &here)
	}
	v.Set(out)
}

// fieldsOf returns the fields of a struct type; those of an inlined struct count
// as its own.
func (d *decoder) fieldsOf(t reflect.Type) shape {
	if known, ok := d.shapes[t]; ok {
		return known
	}
	out := shape{}
	for _, f := range reflect.VisibleFields(t) {
		if tag, _, _ := strings.Cut(f.Tag.Get("yaml"), ","); tag != "" {
			out[tag] = shapeField{number: len(out), index: f.Index}
		}
	}
	if d.shapes == nil {
		d.shapes = map[reflect.Type]shape{}
	}
	d.shapes[t] = out
	return out
}

// suggest names the field that was probably meant, else all there are.
func suggest(name string, fields shape) string {
	known := slices.Sorted(maps.Keys(fields))
	for _, f := range known {
		if strings.EqualFold(f, name) || distance(strings.ToLower(f), strings.ToLower(name)) <= 2 {
			return "did you mean " + f + "?"
		}
	}
	return "known here: " + strings.Join(known, ", ")
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// scalar reads text into what target points to. A fault has no place yet; ok is
// false where the target is not a scalar.
func scalar(target any, text string) (f *Fault, ok bool) {
	switch p := target.(type) {
	case *string:
		*p = text
		return nil, true
	case *bool:
		return read(text, p, strconv.ParseBool, "not a boolean", "write true or false"), true
	case *int:
		return read(text, p, strconv.Atoi, "not a whole number", "write a number"), true
	case *uint16:
		return read(text, p, parseUint16, "not a number from 0 to 65535", "write a number in that range"), true
	case *time.Duration:
		return read(text, p, time.ParseDuration, "not a duration", "write one with its unit, such as 30s or 2m"), true
	case *netip.Prefix:
		return read(text, p, parsePrefix, "not a network in CIDR form", "write one such as 10.8.0.0/24"), true
	case *netip.Addr:
		return read(text, p, parseAddr, "not an IP address", "write one such as 10.8.0.2, without a length"), true
	case *Endpoint:
		e, err := ParseEndpoint(text)
		if err != nil {
			return &Fault{Value: show(text), Problem: err.Error(), Fix: "write host:port, such as 203.0.113.1:51820, [2001:db8::1]:51820 or vpn.example.com:51820"}, true
		}
		*p = e
		return nil, true
	case *PortRange:
		return read(text, p, parsePortRange, "not a port or a range of ports", `write 443 or "8000-8080", from 1 to 65535`), true
	case *DataPlane:
		return oneOf(text, p, Auto, Kernel, Userspace), true
	case *Protocol:
		return oneOf(text, p, AnyProtocol, TCP, UDP, ICMP), true
	case *key.Public:
		return unquoted(read(text, p, key.ParsePublic, key.ErrFormat.Error(), "give the output of 'wg pubkey'"), text), true
	case *key.Preshared:
		return unquoted(read(text, p, key.ParsePreshared, key.ErrFormat.Error(), "give the output of 'wg genpsk'"), text), true
	}
	return nil, false
}

func read[T any](text string, out *T, parse func(string) (T, error), problem, fix string) *Fault {
	v, err := parse(text)
	if err != nil {
		return &Fault{Value: show(text), Problem: problem, Fix: fix}
	}
	*out = v
	return nil
}

// unquoted keeps out of the fault what may be a secret key, or most of one.
func unquoted(f *Fault, text string) *Fault {
	if f != nil {
		f.Value = ""
		f.Problem += fmt.Sprintf(" (%d characters, not 44)", len(text))
	}
	return f
}

func oneOf[T ~string](text string, out *T, allowed ...T) *Fault {
	if !slices.Contains(allowed, T(text)) {
		names := make([]string, len(allowed))
		for i, a := range allowed {
			names[i] = string(a)
		}
		return &Fault{Value: show(text), Problem: "unknown", Fix: "use one of " + strings.Join(names, ", ")}
	}
	*out = T(text)
	return nil
}

func parseUint16(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err
}

// parsePrefix takes a bare address for a network of that one host, as wg does.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := parseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err == nil && a.Zone() != "" {
		err = fmt.Errorf("address with a zone")
	}
	return a.Unmap(), err
}

func parsePortRange(s string) (PortRange, error) {
	first, last, found := strings.Cut(s, "-")
	if !found {
		last = first
	}
	a, errA := parseUint16(strings.TrimSpace(first))
	b, errB := parseUint16(strings.TrimSpace(last))
	if errA != nil || errB != nil || a == 0 || a > b {
		return PortRange{}, fmt.Errorf("not a range")
	}
	return PortRange{First: a, Last: b}, nil
}

// checkTag refuses text for a number or a boolean and the other way round, which
// YAML tells apart by quotes: peerToPeer: "0" is no boolean, name: 1.0 no name.
func checkTag(n *yaml.Node, t reflect.Type) *Fault {
	tag, want, fix := n.ShortTag(), "", "write it without quotes"
	switch {
	case t.Kind() == reflect.Bool:
		want, fix = "!!bool", "write true or false"
	case t == reflect.TypeFor[int]() || t == reflect.TypeFor[uint16]():
		want = "!!int"
	case t == reflect.TypeFor[string]():
		want, fix = "!!str", "put it in quotes"
	}
	if want == "" || tag == want {
		return nil
	}
	return &Fault{Value: show(n.Value), Problem: "is " + tagName(tag) + ", not " + tagName(want), Fix: fix}
}

func tagName(tag string) string {
	switch tag {
	case "!!str":
		return "text"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	}
	return "of another type"
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	default:
		return "a single value"
	}
}

func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Uint16:
		return "a number"
	default:
		return "a single value"
	}
}
