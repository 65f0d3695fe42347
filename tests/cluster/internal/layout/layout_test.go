package layout

import "testing"

func TestFromEnv(t *testing.T) {
	tests := []struct {
		name string
		env  map[string]string
		want string // empty: refused
	}{
		{"own variable first", map[string]string{"VPN_GATEWAY_CACHE": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c/cluster"},
		{"then XDG", map[string]string{"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/vpn-gateway/cluster"},
		{"then home", map[string]string{"HOME": "/h"}, "/h/.cache/vpn-gateway/cluster"},
		{"nothing set", nil, ""},
		{"relative", map[string]string{"VPN_GATEWAY_CACHE": "c", "HOME": "/h"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := FromEnv(func(k string) string { return tt.env[k] })
			if (err != nil) != (tt.want == "") {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
			if got.Root != tt.want {
				t.Errorf("got %q, want %q", got.Root, tt.want)
			}
		})
	}
}
