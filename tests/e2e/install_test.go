//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// testInstall does what the README and NOTES.txt tell a new user, word for word:
// from the installation to a client that reaches a Service, and to an uninstalled
// release that leaves nothing behind.
func testInstall(t *testing.T, c *cluster) {
	g := &gateway{cluster: c, scenario: "Install", namespace: "default", address: netip.MustParseAddr("203.0.113.1")}
	c.collectLogs(t, g.namespace)
	inNamespace := must[[]string](t)(c.inventory(t.Context(), g.namespace))
	ofCluster := must[[]string](t)(c.inventory(t.Context(), ""))
	t.Cleanup(func() { g.uninstall(context.Background()) }) // where the test ends early

	dir := c.workDir(t)
	readme := installCommands(t, filepath.Join(c.root, "README.md"))
	start := time.Now()
	notes := c.run(t, c.shell(dir, readme["helm install"])).stdout
	c.run(t, c.shell(dir, readme["kubectl rollout"]))
	c.times.add(g.scenario, "helm install to rolled out", time.Since(start))
	// Long before the client dials: what it sent to a node that does not know the
	// address yet would stay on the wrong way for as long as it tries.
	g.balance(t)
	key := g.key(t)

	t.Run("key Job", func(t *testing.T) { g.checkKeyJob(t) })
	t.Run("rights", func(t *testing.T) { g.checkRights(t) })
	t.Run("process", func(t *testing.T) { g.checkProcess(t) })
	t.Run("images are not pulled", func(t *testing.T) { g.checkPulls(t) })
	t.Run("helm test", func(t *testing.T) { c.run(t, c.helm("test", release, "--namespace", g.namespace)) })
	t.Run("NOTES", func(t *testing.T) { g.checkNotes(t, dir, notes) })

	made := c.shell(dir, readme["kubectl exec"])
	made.secret = true
	alice := c.run(t, made)
	config, err := wgclient.Parse(alice.stdout)
	if err != nil {
		t.Fatalf("what `peer new` prints is no client file: %v", err)
	}
	if got := g.state(t).PublicKey; config.Peers[0].PublicKey != got {
		t.Errorf("the client file names the gateway %s, which is %s", config.Peers[0].PublicKey, got)
	}
	_, file, _ := strings.Cut(readme["helm upgrade"], "--values ")
	values := "server:\n  publicEndpoint: 203.0.113.1:51820\n" + valuesIn(t, alice.stderr)
	if err := os.WriteFile(filepath.Join(dir, file), []byte(values), 0o600); err != nil {
		t.Fatal(err)
	}
	lives, before, changed := g.lives(t), g.state(t), time.Now()
	c.run(t, c.shell(dir, readme["helm upgrade"]))
	c.times.add(g.scenario, "alice added, in force", g.inForce(t, "alice in force", changed, before))
	g.untouched(t, lives)
	g.sameKey(t, key)

	client := wgclient.ForTest(t, config, wgclient.Options{NS: c.outside})
	seen := strings.Fields(c.reachesEcho(t, client))
	if want := g.pod(t).Status.PodIP; len(seen) != 3 || addressOf(seen[1]) != want {
		t.Errorf("the echo service saw %q, want it to be called by the gateway's Pod, %s", seen, want)
	}

	t.Run("a deleted Pod's successor", func(t *testing.T) { g.checkSuccessor(t, client) })
	g.sameKey(t, key)

	start = time.Now()
	g.uninstall(t.Context())
	for _, scope := range []struct {
		namespace string
		want      []string
	}{{g.namespace, inNamespace}, {"", ofCluster}} {
		eventually(t, "what the release leaves behind to go", func(ctx context.Context) (bool, string) {
			now, err := c.inventory(ctx, scope.namespace)
			if err != nil {
				return false, err.Error()
			}
			diff := cmp.Diff(scope.want, now)
			return diff == "", "objects (-before +after):\n" + diff
		})
	}
	c.times.add(g.scenario, "helm uninstall to nothing left", time.Since(start))
}

// uninstall is no error where nothing is installed.
func (g *gateway) uninstall(ctx context.Context) {
	_, _ = g.try(ctx, g.helm("uninstall", release, "--namespace", g.namespace, "--ignore-not-found"))
}

// addressOf is the host of a host:port.
func addressOf(text string) string {
	a, err := netip.ParseAddrPort(text)
	if err != nil {
		return err.Error()
	}
	return a.Addr().String()
}

// installCommands are the commands of the README's section Install by their first
// two words; the first of each kind.
func installCommands(t *testing.T, readme string) map[string]string {
	t.Helper()
	text := string(must[[]byte](t)(os.ReadFile(readme)))
	_, section, found := strings.Cut(text, "\n## Install\n")
	if !found {
		t.Fatalf("%s has no section Install", readme)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	commands := map[string]string{}
	for line := range strings.Lines(section) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "helm" && words[0] != "kubectl" {
			continue
		}
		kind := words[0] + " " + words[1]
		if commands[kind] == "" {
			commands[kind] = strings.TrimSpace(line)
		}
	}
	kinds := slices.Sorted(maps.Keys(commands))
	if diff := cmp.Diff([]string{"helm install", "helm upgrade", "kubectl exec", "kubectl rollout"}, kinds); diff != "" {
		t.Fatalf("commands of the README's section Install (-want +got):\n%s", diff)
	}
	return commands
}

// valuesIn is the entry for the values in what `peer new` says: from the line
// "peers:" to the end.
func valuesIn(t *testing.T, text string) string {
	t.Helper()
	_, entries, found := strings.Cut(text, "\npeers:\n")
	if !found {
		t.Fatalf("`peer new` says no entry for peers:\n%s", text)
	}
	return "peers:\n" + entries
}

// checkKeyJob looks at the Job that made the key.
func (g *gateway) checkKeyJob(t *testing.T) {
	g.awaitKeyJob(t)
	if owner := g.key(t).OwnerReferences; len(owner) != 0 {
		t.Errorf("the key Secret belongs to %v: it would go with that", owner)
	}
}

// awaitKeyJob waits until the Job has made the key, at the first attempt.
func (g *gateway) awaitKeyJob(t *testing.T) {
	t.Helper()
	eventually(t, "the key Job", func(ctx context.Context) (bool, string) {
		jobs, err := g.client.BatchV1().Jobs(g.namespace).List(ctx, metav1.ListOptions{})
		if err != nil || len(jobs.Items) != 1 {
			return false, fmt.Sprintf("%d Jobs, %v", len(jobs.Items), err)
		}
		status := jobs.Items[0].Status
		return status.Succeeded == 1 && status.Failed == 0, fmt.Sprintf("%+v", status)
	})
}

// checkPulls proves by the kubelets' own events that the images on the nodes were
// used: no registry can be reached from here.
func (g *gateway) checkPulls(t *testing.T) {
	events, err := g.client.CoreV1().Events(g.namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var reasons []string
	for _, e := range events.Items {
		if strings.Contains(e.InvolvedObject.Name, release) && strings.HasPrefix(e.Reason, "Pull") {
			reasons = append(reasons, e.Reason)
			if !strings.Contains(e.Message, "already present on machine") {
				t.Errorf("event of %s: %s", e.InvolvedObject.Name, e.Message)
			}
		}
	}
	slices.Sort(reasons)
	if diff := cmp.Diff([]string{"Pulled"}, slices.Compact(reasons)); diff != "" {
		t.Errorf("events about images (-want +got):\n%s", diff)
	}
}

// checkNotes runs every command that NOTES.txt tells, as it stands there.
func (g *gateway) checkNotes(t *testing.T, dir, notes string) {
	var verbs []string
	for _, line := range regexp.MustCompile(`(?m)^ +(kubectl (?:--namespace default )?(\w+) .*)$`).FindAllStringSubmatch(notes, -1) {
		call := g.shell(dir, line[1])
		call.secret = line[2] == "exec"
		out := g.run(t, call)
		if call.secret {
			// Recorded, as every key; this client is never let in.
			if _, err := wgclient.Parse(out.stdout); err != nil {
				t.Errorf("what `peer new` prints is no client file: %v", err)
			}
		}
		verbs = append(verbs, line[2])
	}
	slices.Sort(verbs)
	if diff := cmp.Diff([]string{"exec", "get", "label", "rollout"}, slices.Compact(verbs)); diff != "" {
		t.Errorf("verbs of the commands in NOTES.txt (-want +got):\n%s\nin\n%s", diff, notes)
	}
	t.Cleanup(func() { // the label of the last command
		if _, err := g.try(context.Background(), g.kubectl("label", "namespace", g.namespace, "pod-security.kubernetes.io/enforce-")); err != nil {
			t.Error(err)
		}
	})
}

// checkSuccessor deletes the Pod and expects the next one to be the same gateway
// to its client.
func (g *gateway) checkSuccessor(t *testing.T, client *wgclient.Client) {
	before, was := g.pod(t), g.state(t)
	deleted := time.Now()
	g.run(t, g.kubectl("delete", "pod", "--namespace", g.namespace, "--wait=false", before.Name))
	eventually(t, "another Pod", func(ctx context.Context) (bool, string) {
		pods, err := g.pods(ctx)
		if err != nil || len(pods) != 1 {
			return false, fmt.Sprintf("%d Pods, %v", len(pods), err)
		}
		return pods[0].UID != before.UID && isReady(&pods[0]), pods[0].Name
	})
	g.times.add(g.scenario, "Pod deleted to successor ready", time.Since(deleted))
	if diff := cmp.Diff(was.PublicKey, g.state(t).PublicKey); diff != "" {
		t.Errorf("public key of the successor (-before +after):\n%s", diff)
	}
	g.balance(t)
	g.reachesEcho(t, client)
	g.times.add(g.scenario, "Pod deleted to client served again", time.Since(deleted))
}
