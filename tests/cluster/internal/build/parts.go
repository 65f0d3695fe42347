package build

import (
	"fmt"
	"slices"
	"strings"
)

// Part is what one invocation of `go build` makes. Each heavy part is a Go
// module of its own: their dependencies contradict each other.
type Part struct {
	// Name of the part and of its place in the cache.
	Name string
	// Dir is the directory of its module, relative to that of this program.
	Dir string
	// Packages are what to build, as arguments of go build.
	Packages []string
	// Links are further names of its one program, which looks at its own name.
	Links []string
	// Tags are build tags; LDFlags go to the linker, after -s -w.
	Tags, LDFlags string
	// CGO builds with a C compiler.
	CGO bool
	// Sources are files or directories whose text decides, with the fields
	// above, whether the part must be built anew, relative as Dir is.
	Sources []string
	// Cold says how long a first build takes.
	Cold string
	// Replaced are files of one dependency in whose place ours are built.
	Replaced *Replacement `json:",omitempty"`
}

// kubernetesVersion is that of parts/kubernetes/go.mod; the linker writes it
// into the programs, which otherwise believe to be v0.0.0-master.
const kubernetesVersion = "v1.37.2"

// Parts are the parts of every cluster, the quick ones first: what cannot be
// built is known soon.
func Parts() []Part {
	return []Part{
		{
			Name: "images", Dir: ".",
			Packages: []string{"./images/echo", "./images/pause"},
			Sources:  []string{"images"},
			Cold:     "seconds",
		},
		{
			Name: "runc", Dir: "parts/runc",
			Packages: []string{"github.com/opencontainers/runc"},
			Tags:     "netgo osusergo seccomp", LDFlags: `-extldflags "-static"`,
			CGO:     true,
			Sources: []string{"parts/runc"},
			Cold:    "half a minute",
		},
		{
			Name: "cni", Dir: "parts/cni",
			Packages: []string{
				"github.com/containernetworking/plugins/plugins/ipam/host-local",
				"github.com/containernetworking/plugins/plugins/main/loopback",
				"github.com/containernetworking/plugins/plugins/main/ptp",
				"github.com/containernetworking/plugins/plugins/meta/portmap",
			},
			Sources: []string{"parts/cni"},
			Cold:    "half a minute",
		},
		{
			Name: "containerd", Dir: "parts/containerd",
			Packages: []string{
				"github.com/containerd/containerd/v2/cmd/containerd",
				"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
				"github.com/containerd/containerd/v2/cmd/ctr",
			},
			Tags:    "no_btrfs,no_zfs,no_devmapper,no_tracing",
			Sources: []string{"parts/containerd"},
			Cold:    "2 minutes",
		},
		{
			Name: "coredns", Dir: "parts/coredns",
			Packages: []string{"."},
			Sources:  []string{"parts/coredns"},
			Cold:     "3 minutes",
		},
		{
			Name: "kubernetes", Dir: "parts/kubernetes",
			Packages: []string{"."},
			Links:    []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"},
			LDFlags: "-X k8s.io/component-base/version.gitVersion=" + kubernetesVersion +
				" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37" +
				" -X k8s.io/client-go/pkg/version.gitVersion=" + kubernetesVersion,
			Sources: []string{"parts/kubernetes"},
			Cold:    "15 minutes on two processors",
		},
	}
}

// OptionalParts are those that are built where they are asked for by name.
func OptionalParts() []Part {
	const externalSecrets = "github.com/external-secrets/external-secrets"
	return []Part{
		{
			// The controller as it was released, but for two files that hold
			// nothing but the lists of providers and of generators. The
			// controllers import these lists, and no build tag shortens them:
			// with all forty SDKs (2,259 packages, 193 MB) the build takes 18
			// minutes of processor time, without them (899 packages, 56 MB)
			// less than 8, nearly all of it for packages that
			// tests/externalsecrets compiles too, with the same flags.
			// `go build` of the same package, there, makes the whole of it.
			Name: "external-secrets", Dir: "parts/external-secrets",
			Packages: []string{externalSecrets},
			Sources:  []string{"parts/external-secrets"},
			Cold:     "4 minutes on two processors, seconds after make test-externalsecrets",
			Replaced: &Replacement{
				Module: externalSecrets,
				Files: map[string]string{
					"pkg/provider/register/register.go":  "providers/register.go",
					"pkg/generator/register/register.go": "generators/register.go",
				},
			},
		},
	}
}

// Select are the optional parts of these names.
func Select(names []string) ([]Part, error) {
	parts := make([]Part, 0, len(names))
	for _, name := range names {
		optional := OptionalParts()
		i := slices.IndexFunc(optional, func(p Part) bool { return p.Name == name })
		if i < 0 {
			known := make([]string, 0, len(optional))
			for _, p := range optional {
				known = append(known, p.Name)
			}
			return nil, fmt.Errorf("part %q: unknown: use %s", name, strings.Join(known, ", "))
		}
		parts = append(parts, optional[i])
	}
	return parts, nil
}
