package externalsecrets

import (
	"errors"
	"strings"
	"testing"

	esv1 "github.com/external-secrets/external-secrets/apis/externalsecrets/v1"
	esv1alpha1 "github.com/external-secrets/external-secrets/apis/externalsecrets/v1alpha1"
	"github.com/external-secrets/external-secrets/pkg/esutils"
	template "github.com/external-secrets/external-secrets/pkg/template/v2"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// scenario is the golden file that has both ways: values/vault.yaml.
const scenario = "vault.yaml"

// serverLife are the contents of the server key's Secret from one rotation to the
// next but one, as keys come and go. (No keys: words that look like some.)
func serverLife() []map[string]string {
	const zero, one, two, three = "zero+/0=", "one+/1=\n", "two+/2=", "three+/3="
	return []map[string]string{
		{"privateKey": zero},
		{"privateKey": zero, "green.20261225T030000Z": one},
		{"privateKey": one, "green.20261225T030000Z": one},
		{"privateKey": one, "green.20261225T030000Z": one, "blue.20270125T030000Z": two},
		{"privateKey": two, "blue.20270125T030000Z": two, "green.20270225T030000Z": three},
		{"privateKey": three, "green.20270225T030000Z": three},
	}
}

// push is what the controller does for a PushSecret.
func push(t *testing.T, b backend, p *esv1alpha1.PushSecret, data map[string]string) error {
	t.Helper()
	secret := &corev1.Secret{Type: corev1.SecretTypeOpaque, Data: toBytes(data)}
	if err := apply(p.Spec.Template, toBytes(data), secret); err != nil {
		return err
	}
	for _, d := range p.Spec.Data {
		converted, err := esutils.ReverseKeys(d.ConversionStrategy, secret.Data)
		if err != nil {
			return err
		}
		secret.Data = converted
		d.Match.RemoteRef.RemoteKey = b.entry(d.Match.RemoteRef.RemoteKey)
		if err := b.PushSecret(t.Context(), secret, d); err != nil {
			return err
		}
	}
	return nil
}

// fetch is what the controller does for an ExternalSecret with one extract.
func fetch(t *testing.T, b backend, e *esv1.ExternalSecret) (map[string]string, error) {
	t.Helper()
	extract := *e.Spec.DataFrom[0].Extract
	extract.Key = b.entry(extract.Key)
	data, err := b.GetSecretMap(t.Context(), extract)
	if err != nil {
		return nil, err
	}
	data, err = esutils.ConvertKeys(extract.ConversionStrategy, data)
	if err != nil {
		return nil, err
	}
	data, err = esutils.DecodeMap(extract.DecodingStrategy, data)
	if err != nil {
		return nil, err
	}
	secret := &corev1.Secret{}
	if e.Spec.Target.Template == nil {
		secret.Data = data
	} else if err := apply(e.Spec.Target.Template, data, secret); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for name, value := range secret.Data {
		out[name] = string(value)
	}
	return out, nil
}

// apply runs the literal templates, the only ones that the chart writes.
func apply(t *esv1.ExternalSecretTemplate, data map[string][]byte, secret *corev1.Secret) error {
	if t == nil {
		return nil
	}
	for _, from := range t.TemplateFrom {
		text := []byte(*from.Literal)
		if err := template.Execute(map[string][]byte{*from.Literal: text}, data, esv1.TemplateScopeKeysAndValues, from.Target, secret); err != nil {
			return err
		}
	}
	return nil
}

// What is pushed comes back as it went, and what has gone does not: dated names,
// with their dots, and through every provider's idea of a whole Secret.
func TestRoundTrip(t *testing.T) {
	p := find[*esv1alpha1.PushSecret](t, scenario, "vpn-gateway-key")
	e := find[*esv1.ExternalSecret](t, scenario, "vpn-gateway-key-external")
	for name, b := range backends(t) {
		t.Run(name, func(t *testing.T) {
			for i, want := range serverLife() {
				for range 2 { // the controller does so again and again
					if err := push(t, b, p, want); err != nil {
						t.Fatalf("push %d: %v", i, err)
					}
				}
				got, err := fetch(t, b, e)
				if err != nil {
					t.Fatalf("fetch %d: %v", i, err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("state %d (-pushed +fetched):\n%s", i, diff)
				}
			}
		})
	}
}

// Each key in a property of its own, externalSecrets.pushSecret.property="": Vault
// replaces the entry, Kubernetes adds to it. That is why it is not the default.
func TestRoundTripOfProperties(t *testing.T) {
	const objects = "external-secrets-objects.yaml"
	var p *esv1alpha1.PushSecret
	var e *esv1.ExternalSecret
	for _, d := range documents(t) {
		if o, ok := d.object.(*esv1alpha1.PushSecret); ok && d.file == objects && o.Spec.Data[0].Match.RemoteRef.Property == "" {
			p = o
		}
		if o, ok := d.object.(*esv1.ExternalSecret); ok && d.file == objects && o.Name == "vpn-gateway-key-external" && o.Spec.Target.Template == nil && len(o.Spec.DataFrom) == 1 && o.Spec.DataFrom[0].Extract.Key == "vpn/server" {
			e = o
		}
	}
	if p == nil || e == nil {
		t.Fatal("no objects without a property for all keys")
	}
	life := serverLife()
	last := life[len(life)-1]
	for name, forgets := range map[string]bool{"vault-kv-2": true, "kubernetes": false} {
		b := backends(t)[name]
		for i, state := range life {
			if err := push(t, b, p, state); err != nil {
				t.Fatalf("%s: push %d: %v", name, i, err)
			}
		}
		got, err := fetch(t, b, e)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if same := cmp.Equal(last, got); same != forgets {
			t.Errorf("%s: forgets what has gone: %v, want %v; entries %d, want %d", name, same, forgets, len(got), len(last))
		}
	}
}

// An entry that somebody wrote by hand is read before anything was pushed, and the
// keys that are added to it by hand later, of new peers, still are.
func TestWrittenByHand(t *testing.T) {
	p := find[*esv1alpha1.PushSecret](t, "external-secrets-objects.yaml", "psk-x-source")
	e := find[*esv1.ExternalSecret](t, "external-secrets-objects.yaml", "psk-x")
	entry := p.Spec.Data[0].Match.RemoteRef.RemoteKey
	property := p.Spec.Data[0].Match.RemoteRef.Property
	for name, b := range backends(t) {
		t.Run(name, func(t *testing.T) {
			read := func(want map[string]string) {
				t.Helper()
				got, err := fetch(t, b, e)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
			written := map[string]string{"alice": "alice0=", "bob.smith": "bob0="}
			b.put(entry, written)
			read(written)

			pushed := map[string]string{"alice": "alice0=", "alice.20261225T030000Z": "alice1=", "bob.smith": "bob0="}
			if err := push(t, b, p, pushed); err != nil {
				t.Fatal(err)
			}
			read(pushed)

			b.put(entry, map[string]string{
				"alice": "alice, as she was", "carol": "carol0=",
				property: `{"alice":"alice1=","alice.20261225T030000Z":"alice1=","bob.smith":"bob0="}`,
			})
			read(map[string]string{"alice": "alice1=", "alice.20261225T030000Z": "alice1=", "bob.smith": "bob0=", "carol": "carol0="})
		})
	}
}

// A Secret that no Job has filled is not pushed: it would take the place of keys
// that are in force.
func TestEmptyIsNotPushed(t *testing.T) {
	server := find[*esv1alpha1.PushSecret](t, scenario, "vpn-gateway-key")
	psk := find[*esv1alpha1.PushSecret](t, "external-secrets-objects.yaml", "psk-x-source")
	for name, b := range backends(t) {
		for _, c := range []struct {
			push *esv1alpha1.PushSecret
			data map[string]string
		}{
			{server, nil},
			{server, map[string]string{"green.20261225T030000Z": "one="}},
			{server, map[string]string{"privateKey": ""}},
			{psk, nil},
		} {
			err := push(t, b, c.push, c.data)
			if err == nil || !strings.Contains(err.Error(), "no key in the Secret yet") {
				t.Errorf("%s: PushSecret %s of %d keys: error %v, want it refused", name, c.push.Name, len(c.data), err)
			}
			key := esv1.ExternalSecretDataRemoteRef{Key: b.entry(c.push.Spec.Data[0].Match.RemoteRef.RemoteKey)}
			if _, err := b.GetSecretMap(t.Context(), key); !errors.Is(err, esv1.NoSecretError{}) {
				t.Errorf("%s: PushSecret %s: the backend has an entry now (error %v)", name, c.push.Name, err)
			}
		}
	}
}

// What cannot be read is an error, so that the Secret stays as it is; and the error,
// which ends in an event, does not quote it.
func TestGarbled(t *testing.T) {
	e := find[*esv1.ExternalSecret](t, scenario, "vpn-gateway-key-external")
	p := find[*esv1alpha1.PushSecret](t, scenario, "vpn-gateway-key")
	ref := p.Spec.Data[0].Match.RemoteRef
	const secret = "c2VjcmV0c2VjcmV0"
	for name, b := range backends(t) {
		for _, text := range []string{secret, `{"privateKey":"` + secret, `["` + secret + `"]`, `"` + secret + `"`} {
			b.put(ref.RemoteKey, map[string]string{ref.Property: text})
			got, err := fetch(t, b, e)
			if err == nil {
				t.Errorf("%s: %q becomes a Secret with %d keys", name, text, len(got))
			} else if strings.Contains(err.Error(), secret[:6]) {
				t.Errorf("%s: the error quotes the key: %v", name, err)
			}
		}
	}
}
