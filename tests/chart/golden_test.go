package chart

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
)

// Every values file renders to its golden manifest and notes, twice the same,
// and without the traces that careless whitespace leaves.
func TestGolden(t *testing.T) {
	for name, file := range scenarios(t) {
		t.Run(name, func(t *testing.T) {
			first, second := renderFile(t, file), renderFile(t, file)
			text := manifest(first)
			if diff := cmp.Diff(text, manifest(second)); diff != "" {
				t.Errorf("two renderings differ:\n%s", diff)
			}
			golden(t, name+".yaml", text)
			golden(t, name+".notes.txt", first.Notes)
			for _, o := range first.Objects {
				untidy(t, o.Template, string(o.YAML))
			}
		})
	}
}

// All optional parts at once are tidy too.
func TestTidy(t *testing.T) {
	for _, text := range []string{everything, everything + external} {
		for _, o := range render(t, text).Objects {
			untidy(t, o.Template, string(o.YAML))
		}
	}
}

// The values files are the first thing that a user reads: each says in its head
// what it is for and how to install it.
func TestValuesFilesSayWhatTheyAreFor(t *testing.T) {
	for name, file := range scenarios(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		head, _, _ := strings.Cut(string(text), "\n\n")
		if !strings.Contains(head, "--values values/"+name+".yaml") {
			t.Errorf("%s: its first comment has no helm install line that names it", file)
		}
	}
}

// No template asks a cluster, a clock or a dice: what Git says is what comes out.
func TestTemplatesArePure(t *testing.T) {
	impure := regexp.MustCompile(`\b(lookup|rand[A-Z]\w*|gen[A-Z]\w*|uuidv4|now|ago|date|dateModify|getHostByName|derivePassword|htpasswd|bcrypt|encryptAES|shuffle|buildCustomCert)\b`)
	comment := regexp.MustCompile(`(?s)\{\{-?\s*/\*.*?\*/\s*-?\}\}`)
	action := regexp.MustCompile(`(?s)\{\{.*?\}\}`)
	quoted := regexp.MustCompile(`"(\\.|[^"\\])*"`)
	var files int
	err := filepath.WalkDir(filepath.Join(chartDir, "templates"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for _, code := range action.FindAllString(comment.ReplaceAllString(string(text), ""), -1) {
			if found := impure.FindString(quoted.ReplaceAllString(code, `""`)); found != "" {
				t.Errorf("%s: %s in %s", path, found, code)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 15 {
		t.Errorf("%d templates searched, want at least 15", files)
	}
	for _, bad := range []string{`{{ (lookup "v1" "Secret" "" "x") }}`, `{{ randAlphaNum 8 }}`, `{{ genPrivateKey "rsa" }}`} {
		if !impure.MatchString(bad) {
			t.Errorf("the search does not find %s", bad)
		}
	}
}

// No rendered manifest and no notes carry a key, other than the public keys of
// the values.
func TestNoKeyMaterial(t *testing.T) {
	key := regexp.MustCompile(`[A-Za-z0-9+/]{43}=`)
	for name, file := range scenarios(t) {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var given struct {
			Peers []struct{ PublicKey string }
		}
		if err := yaml.Unmarshal(source, &given); err != nil {
			t.Fatal(err)
		}
		var public []string
		for _, p := range given.Peers {
			public = append(public, p.PublicKey)
		}
		r := renderFile(t, file)
		found := key.FindAllString(manifest(r)+r.Notes, -1)
		slices.Sort(found)
		slices.Sort(public)
		if diff := cmp.Diff(public, found); diff != "" {
			t.Errorf("%s: keys in the output (-public keys of the values +found):\n%s", name, diff)
		}
		for _, o := range r.Objects {
			if o.Kind != "Secret" {
				continue
			}
			for _, field := range []string{"data", "stringData"} {
				if _, has := generic(t, o).Object[field]; has {
					t.Errorf("%s: Secret %s has %s", name, o.Name, field)
				}
			}
		}
	}
}

func renderFile(t *testing.T, file string) *chart.Rendered {
	t.Helper()
	r, err := chart.Render(chart.Options{ChartDir: chartDir, ValuesFiles: []string{file}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// manifest is the text of all objects, hooks among them.
func manifest(r *chart.Rendered) string {
	var b strings.Builder
	for _, o := range r.Objects {
		fmt.Fprintf(&b, "---\n# Source: %s\n%s", o.Template, o.YAML)
	}
	return b.String()
}

// untidy reports blank lines, trailing spaces, tabs and a missing or doubled
// end of line.
func untidy(t *testing.T, template, text string) {
	t.Helper()
	if !strings.HasSuffix(text, "\n") {
		t.Errorf("%s: does not end with a line break", template)
	}
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if strings.TrimSpace(line) == "" || strings.TrimRight(line, " \t") != line || strings.Contains(line, "\t") {
			t.Errorf("%s: line %d is %q, want no blank line, no trailing space, no tab", template, i+1, line)
		}
	}
}
