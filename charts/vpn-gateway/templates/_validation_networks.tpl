{{/* Faults of addresses, networks and where peers may go. A list of faults has one to a line. */}}

{{/* "true" for an IPv4 address, else empty. Takes a string. */}}
{{- define "vpn-gateway.isIPv4" -}}
{{- if regexMatch "^((25[0-5]|(2[0-4]|1[0-9]|[1-9])?[0-9])(\\.|$)){4}$" (printf "%s" .) -}}
{{- if not (hasSuffix "." .) }}true{{ end -}}
{{- end -}}
{{- end -}}

{{/*
"true" for an IPv6 address (RFC 4291, section 2.2), else empty: eight groups of hex digits,
or fewer with one "::" in place of the missing ones. An IPv4 tail counts as two. Takes a string.
*/}}
{{- define "vpn-gateway.isIPv6" -}}
{{- $tail := regexFind "[0-9]+\\.[0-9.]+$" . -}}
{{- $address := empty $tail | ternary . (printf "%s0:0" (trimSuffix $tail .)) -}}
{{- $gap := contains "::" $address -}}
{{- $groups := regexSplit "::?" $address -1 | compact -}}
{{- $form := regexMatch "^(::)?([0-9A-Fa-f]{1,4}::?)*([0-9A-Fa-f]{1,4})?$" $address -}}
{{- $once := le (len (splitList "::" $address)) 2 -}}
{{- $ends := or $gap (not (hasSuffix ":" $address)) -}}
{{- $single := not (regexMatch "[^:]:$" $address) -}}
{{- $count := $gap | ternary (le (len $groups) 7) (eq (len $groups) 8) -}}
{{- $tailGood := or (empty $tail) (include "vpn-gateway.isIPv4" $tail) -}}
{{- if and $form $once $ends $single $count $tailGood }}true{{ end -}}
{{- end -}}

{{/*
Faults of a list of addresses. Takes root, field (its path), list, and anyFamily: true where
IPv6 does not depend on ipv6.enabled.
*/}}
{{- define "vpn-gateway.addressFaults" -}}
{{- range $i, $address := .list -}}
{{- $path := printf "%s[%d]" $.field $i -}}
{{- if contains ":" $address -}}
{{- if not (include "vpn-gateway.isIPv6" $address) }}
{{ $path }} {{ $address | quote }} is no IPv6 address; write it like fd00:8::2
{{- else if not (or $.anyFamily $.root.Values.ipv6.enabled) }}
{{ $path }} {{ $address | quote }} is IPv6, but ipv6.enabled is false; set it to true or remove the address
{{- end -}}
{{- else if not (include "vpn-gateway.isIPv4" $address) }}
{{ $path }} {{ $address | quote }} is no IPv4 address; write it like 10.8.0.2
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Faults of a list of networks. Takes what addressFaults takes. */}}
{{- define "vpn-gateway.networkFaults" -}}
{{- range $i, $network := .list -}}
{{- $path := printf "%s[%d]" $.field $i -}}
{{- $address := splitList "/" $network | first -}}
{{- $length := splitList "/" $network | last -}}
{{- $canonical := eq $length (int $length | toString) -}}
{{- if contains ":" $address -}}
{{- if not (and (include "vpn-gateway.isIPv6" $address) $canonical (le (int $length) 128)) }}
{{ $path }} {{ $network | quote }} is no IPv6 network; write it like fd00:8::/64, with a length up to 128
{{- else if not (or $.anyFamily $.root.Values.ipv6.enabled) }}
{{ $path }} {{ $network | quote }} is IPv6, but ipv6.enabled is false; set it to true or remove the network
{{- end -}}
{{- else if not (and (include "vpn-gateway.isIPv4" $address) $canonical (le (int $length) 32)) }}
{{ $path }} {{ $network | quote }} is no IPv4 network; write it like 10.0.0.0/8, with a length up to 32
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Faults of a list of destinations. Takes root, field (its path) and list. */}}
{{- define "vpn-gateway.destinationFaults" -}}
{{- range $i, $destination := .list -}}
{{- $path := printf "%s[%d]" $.field $i -}}
{{- include "vpn-gateway.networkFaults" (dict "root" $.root "field" (printf "%s.cidr" $path) "list" (list .cidr)) | replace ".cidr[0]" ".cidr" }}
{{- $protocol := .protocol | default "any" -}}
{{- if and .ports (not (has $protocol (list "tcp" "udp"))) }}
{{ $path }}.ports {{ toJson .ports }} cannot go with protocol {{ $protocol }}; set protocol to tcp or udp (an entry each for both), or remove the ports
{{- end -}}
{{- range $j, $ports := .ports -}}
{{- $bounds := toString $ports | splitList "-" -}}
{{- $from := first $bounds | int -}}
{{- $to := last $bounds | int -}}
{{- if not (and (le 1 $from) (le $from $to) (le $to 65535)) }}
{{ $path }}.ports[{{ $j }}] {{ toString $ports | quote }} is no port and no range; write 443 or "8000-8080", from 1 to 65535
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Faults of the sections server, routing and service, as far as addresses go. */}}
{{- define "vpn-gateway.routingFaults" -}}
{{- include "vpn-gateway.networkFaults" (dict "root" . "field" "server.addresses" "list" .Values.server.addresses) -}}
{{- include "vpn-gateway.networkFaults" (dict "root" . "field" "routing.routes" "list" .Values.routing.routes) -}}
{{- include "vpn-gateway.addressFaults" (dict "root" . "field" "routing.dns" "list" .Values.routing.dns "anyFamily" true) -}}
{{- include "vpn-gateway.destinationFaults" (dict "root" . "field" "routing.allowedDestinations" "list" .Values.routing.allowedDestinations) -}}
{{- include "vpn-gateway.networkFaults" (dict "root" . "field" "service.loadBalancerSourceRanges" "list" .Values.service.loadBalancerSourceRanges "anyFamily" true) -}}
{{- include "vpn-gateway.addressFaults" (dict "root" . "field" "service.externalIPs" "list" .Values.service.externalIPs "anyFamily" true) -}}
{{- $mtu := int .Values.server.mtu -}}
{{- if and .Values.ipv6.enabled $mtu (lt $mtu 1280) }}
server.mtu {{ $mtu }} is less than IPv6 needs; write 1280 or more, or 0 to have it derived
{{- end -}}
{{- end -}}
