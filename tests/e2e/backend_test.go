//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

const (
	// storeAccount is the ServiceAccount of the gateway's namespace as which
	// External Secrets asks the backend.
	storeAccount = "store"
	// storeRefresh is how often it does. With much less the controller takes
	// itself to be late after each refresh, and waits longer and longer.
	storeRefresh = "5s"

	// Names of what the backend holds.
	serverEntry, pskEntry, peersEntry = "server", "psk", "peers"
	// pushedField is the field of an entry to which keys are pushed.
	pushedField = "vpn-gateway-keys"
)

// backend stands for the secret store outside that a company has: a namespace of
// Secrets, read and written by the Kubernetes provider of External Secrets, as a
// ServiceAccount of the gateway's namespace that has rights there.
type backend struct {
	*gateway
	store string // its namespace
}

// newBackend makes an empty backend for a gateway, and the account to ask it.
func (g *gateway) newBackend(t *testing.T) *backend {
	t.Helper()
	b := &backend{gateway: g, store: g.cluster.namespace(t, "backend", nil)}
	_, err := g.client.CoreV1().ServiceAccounts(g.namespace).Create(t.Context(), &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: storeAccount},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = g.client.RbacV1().Roles(b.store).Create(t.Context(), &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: storeAccount},
		Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{""}, Resources: []string{"secrets"},
			Verbs: []string{"get", "list", "watch", "create", "update", "delete"},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b.grant(t)
	return b
}

// grant gives the account its rights in the backend.
func (b *backend) grant(t *testing.T) {
	t.Helper()
	_, err := b.client.RbacV1().RoleBindings(b.store).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: storeAccount},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: storeAccount},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: storeAccount, Namespace: b.namespace}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// revoke takes them away.
func (b *backend) revoke(t *testing.T) {
	t.Helper()
	if err := b.client.RbacV1().RoleBindings(b.store).Delete(t.Context(), storeAccount, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// provider is the block of a SecretStore that leads to the backend.
func (b *backend) provider() map[string]any {
	return map[string]any{"kubernetes": map[string]any{
		"remoteNamespace": b.store,
		"server":          map[string]any{"caProvider": map[string]any{"type": "ConfigMap", "name": "kube-root-ca.crt", "key": "ca.crt"}},
		"auth":            map[string]any{"serviceAccount": map[string]any{"name": storeAccount}},
	}}
}

// put writes an entry of the backend, all of its fields. Private and pre-shared
// keys among them are recorded by whoever made them.
func (b *backend) put(t *testing.T, entry string, fields map[string]string) {
	t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: entry}, StringData: fields}
	secrets := b.client.CoreV1().Secrets(b.store)
	// Replaced, not merged: a field that is not given goes.
	_, err := secrets.Update(t.Context(), secret, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = secrets.Create(t.Context(), secret, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatalf("writing the backend's entry %s failed", entry) // the error may quote it
	}
}

// remove takes an entry out of the backend.
func (b *backend) remove(t *testing.T, entry string) {
	t.Helper()
	if err := b.client.CoreV1().Secrets(b.store).Delete(t.Context(), entry, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// pushed are the keys that a PushSecret has written to an entry of the backend, by
// their names: it has them all in one field. They are recorded. Never print them.
func (b *backend) pushed(ctx context.Context, t *testing.T, entry string) map[string]string {
	t.Helper()
	s, err := b.client.CoreV1().Secrets(b.store).Get(ctx, entry, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{}
	if text, ok := s.Data[pushedField]; ok {
		if err := json.Unmarshal(text, &keys); err != nil {
			t.Fatalf("the backend's entry %s: its field %s is no JSON", entry, pushedField) // the error may quote it
		}
	}
	for _, key := range keys {
		testenv.RecordSecret(t, key)
	}
	return keys
}

// stored are values of a gateway whose server key, pre-shared keys and peers are in
// the backend, and more over them.
func (b *backend) stored(more map[string]any) map[string]any {
	values := map[string]any{
		"externalSecrets": map[string]any{
			"enabled": true, "refreshInterval": storeRefresh,
			"secretStore":   map[string]any{"create": true, "provider": b.provider()},
			"privateKey":    map[string]any{"enabled": true, "remoteKey": serverEntry},
			"presharedKeys": []any{map[string]any{"name": pskSecret, "remoteKey": pskEntry}},
			"peers":         []any{map[string]any{"name": peersSecret, "remoteKey": peersEntry}},
		},
	}
	maps.Copy(values, more)
	return values
}

// synced waits until a Secret of the gateway's namespace is what f wants, by the
// hands of External Secrets, and notes how long that took.
func (b *backend) synced(t *testing.T, what, secret string, since time.Time, f func(entries map[string][]byte) bool) {
	t.Helper()
	eventually(t, what+" in the Secret", func(ctx context.Context) (bool, string) {
		s, err := b.client.CoreV1().Secrets(b.namespace).Get(ctx, secret, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		return f(s.Data), fmt.Sprintf("%d entries", len(s.Data))
	})
	b.times.add(b.scenario, what+", in the Secret", time.Since(since))
}

// awaitReady waits until every ExternalSecret of the release is ready, or, with
// false, until one is not.
func (b *backend) awaitReady(t *testing.T, want bool) {
	t.Helper()
	eventually(t, fmt.Sprintf("ExternalSecrets to be ready: %t", want), func(ctx context.Context) (bool, string) {
		list, err := b.dynamic.Resource(externalSecretsKind("externalsecrets")).Namespace(b.namespace).List(ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) == 0 {
			return false, fmt.Sprintf("%d ExternalSecrets, %v", len(list.Items), err)
		}
		all, detail := true, ""
		for _, item := range list.Items {
			ready, message := readyCondition(item)
			all = all && ready
			detail += fmt.Sprintf("%s: %t, %s; ", item.GetName(), ready, message)
		}
		return all == want, detail
	})
}

// readyCondition is the condition Ready of an object, with its message.
func readyCondition(o unstructured.Unstructured) (ready bool, message string) {
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range conditions {
		condition, ok := c.(map[string]any)
		if ok && condition["type"] == "Ready" {
			return condition["status"] == "True", fmt.Sprint(condition["message"])
		}
	}
	return false, "no condition Ready"
}
