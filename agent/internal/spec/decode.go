package spec

import (
	"fmt"
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
		return fmt.Sprintf("%s[%d]", p.parent, p.index)
	case p.parent == nil:
		return p.name
	default:
		return p.parent.String() + "." + p.name
	}
}

// decode fills out (a pointer to struct) from one YAML document. What the
// document leaves out or writes as null keeps its value.
func (d *decoder) decode(content []byte, out any) *yaml.Node {
	var doc yaml.Node
	if err := yaml.Unmarshal(content, &doc); err != nil {
		d.add(Fault{Problem: "not YAML: " + strings.TrimPrefix(err.Error(), "yaml: "), Fix: "check the syntax near that line"})
		return nil
	}
	if len(doc.Content) == 0 {
		// Between truncating and writing, that's what every file is.
		d.add(Fault{Problem: "empty", Fix: "write 'peers: []' where there are no peers"})
		return nil
	}
	d.value(doc.Content[0], reflect.ValueOf(out).Elem(), nil)
	return doc.Content[0]
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
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return
	}
	if parse := scalarParser(v); parse != nil {
		if n.Kind != yaml.ScalarNode {
			d.wrongType(n, at, typeName(v.Type()))
			return
		}
		if f := parse(n); f != nil {
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
	fields := fieldsOf(v)
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		here := &fieldPath{parent: at, name: k.Value}
		if line, dup := seen[k.Value]; dup {
			d.add(Fault{Line: k.Line, Path: here.String(), Problem: fmt.Sprintf("written twice, first on line %d", line), Fix: "keep one"})
			continue
		}
		seen[k.Value] = k.Line
		field, ok := fields[k.Value]
		if !ok {
			d.add(Fault{Line: k.Line, Path: (&fieldPath{parent: at, name: show(k.Value)}).String(), Problem: "unknown field", Fix: suggest(k.Value, fields)})
			continue
		}
		d.value(n.Content[i+1], field, here)
	}
}

func (d *decoder) sequence(n *yaml.Node, v reflect.Value, at *fieldPath) {
	if n.Kind != yaml.SequenceNode {
		d.wrongType(n, at, "a list")
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		d.value(c, out.Index(i), &fieldPath{parent: at, index: i})
	}
	v.Set(out)
}

// fieldsOf maps YAML names to the addressable fields of a struct; the fields
// of an inlined struct count as its own.
func fieldsOf(v reflect.Value) map[string]reflect.Value {
	out := make(map[string]reflect.Value, v.NumField())
	for i := range v.NumField() {
		tag, options, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		switch {
		case options == "inline":
			for name, f := range fieldsOf(v.Field(i)) {
				out[name] = f
			}
		case tag != "":
			out[tag] = v.Field(i)
		}
	}
	return out
}

// suggest names the field that was probably meant, else all there are.
func suggest(name string, fields map[string]reflect.Value) string {
	known := make([]string, 0, len(fields))
	for f := range fields {
		known = append(known, f)
	}
	slices.Sort(known)
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

// scalarParser returns how to read a scalar into v, or nil where v is not a
// scalar. A parser returns nil or a fault without place.
func scalarParser(v reflect.Value) func(*yaml.Node) *Fault {
	switch p := v.Addr().Interface().(type) {
	case *string:
		return func(n *yaml.Node) *Fault { *p = n.Value; return nil }
	case *bool:
		return func(n *yaml.Node) *Fault {
			return read(n, p, strconv.ParseBool, "not a boolean", "write true or false")
		}
	case *int:
		return func(n *yaml.Node) *Fault { return read(n, p, strconv.Atoi, "not a whole number", "write a number") }
	case *uint16:
		return func(n *yaml.Node) *Fault {
			return read(n, p, parseUint16, "not a number from 0 to 65535", "write a number in that range")
		}
	case *time.Duration:
		return func(n *yaml.Node) *Fault {
			return read(n, p, time.ParseDuration, "not a duration", "write one with its unit, such as 30s or 2m")
		}
	case *netip.Prefix:
		return func(n *yaml.Node) *Fault {
			return read(n, p, parsePrefix, "not a network in CIDR form", "write one such as 10.8.0.0/24")
		}
	case *netip.Addr:
		return func(n *yaml.Node) *Fault {
			return read(n, p, parseAddr, "not an IP address", "write one such as 10.8.0.2, without a length")
		}
	case *Endpoint:
		return func(n *yaml.Node) *Fault {
			e, err := ParseEndpoint(n.Value)
			if err != nil {
				return &Fault{Value: show(n.Value), Problem: err.Error(), Fix: "write host:port, such as 203.0.113.1:51820, [2001:db8::1]:51820 or vpn.example.com:51820"}
			}
			*p = e
			return nil
		}
	case *PortRange:
		return func(n *yaml.Node) *Fault {
			return read(n, p, parsePortRange, "not a port or a range of ports", `write 443 or "8000-8080", from 1 to 65535`)
		}
	case *DataPlane:
		return func(n *yaml.Node) *Fault { return oneOf(n, p, Auto, Kernel, Userspace) }
	case *Protocol:
		return func(n *yaml.Node) *Fault { return oneOf(n, p, AnyProtocol, TCP, UDP, ICMP) }
	case *key.Public:
		return func(n *yaml.Node) *Fault {
			return read(n, p, key.ParsePublic, key.ErrFormat.Error(), "give the output of 'wg pubkey'")
		}
	case *key.Preshared:
		return func(n *yaml.Node) *Fault {
			f := read(n, p, key.ParsePreshared, key.ErrFormat.Error(), "give the output of 'wg genpsk'")
			if f != nil {
				f.Value = "" // never any part of a secret
			}
			return f
		}
	}
	return nil
}

func read[T any](n *yaml.Node, out *T, parse func(string) (T, error), problem, fix string) *Fault {
	v, err := parse(n.Value)
	if err != nil {
		return &Fault{Value: show(n.Value), Problem: problem, Fix: fix}
	}
	*out = v
	return nil
}

func oneOf[T ~string](n *yaml.Node, out *T, allowed ...T) *Fault {
	if !slices.Contains(allowed, T(n.Value)) {
		names := make([]string, len(allowed))
		for i, a := range allowed {
			names[i] = string(a)
		}
		return &Fault{Value: show(n.Value), Problem: "unknown", Fix: "use one of " + strings.Join(names, ", ")}
	}
	*out = T(n.Value)
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
