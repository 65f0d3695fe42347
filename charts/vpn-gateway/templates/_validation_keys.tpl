{{/* Faults of keys: the Secrets, rotation and External Secrets. A list of faults has one to a line. */}}

{{/* Faults of the Secrets: one that has two sources, and a key for too many. */}}
{{- define "vpn-gateway.secretFaults" -}}
{{- $seen := dict -}}
{{- with .Values.server.privateKey.existingSecret -}}
{{- $_ := set $seen . "server.privateKey.existingSecret" -}}
{{- end -}}
{{- range $field := list "presharedKeys" "peersFrom" -}}
{{- range $i, $secret := (get $.Values $field).existingSecrets -}}
{{- $path := printf "%s.existingSecrets[%d]" $field $i -}}
{{- if hasKey $seen $secret }}
{{ $path }} {{ $secret | quote }} is named by {{ get $seen $secret }} too; name each Secret once
{{- else -}}
{{- $_ := set $seen $secret $path -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range include "vpn-gateway.externalItems" . | fromJsonArray -}}
{{- $path := printf "externalSecrets.%s" .field -}}
{{- range $secret := compact (list .name .source) -}}
{{- if hasKey $seen $secret }}
{{ $path }} makes the Secret {{ $secret | quote }}, which is named by {{ get $seen $secret }} too; take each Secret from one place
{{- else -}}
{{- $_ := set $seen $secret $path -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $makes := include "vpn-gateway.makesKey" . -}}
{{- $writes := or $makes (include "vpn-gateway.rotations" . | fromJsonArray) -}}
{{- if and $writes .Values.rbac.create (not .Values.serviceAccount.create) -}}
{{- if ne (include "vpn-gateway.serviceAccountName" .) "default" -}}
{{- if include "vpn-gateway.usesToken" . }}
serviceAccount.create is false, so that the gateway and the Jobs are one ServiceAccount, and with {{ .Values.externalSecrets.enabled | ternary "externalSecrets.enabled" "fleet.readinessGate.enabled" }} the gateway has its token, by which it could write Secrets; set serviceAccount.create to true
{{- end -}}
{{- else if $makes }}
serviceAccount.create is false and serviceAccount.name names none, so that the right to read the gateway's key would go to every Pod of the namespace; set serviceAccount.name, or server.privateKey.existingSecret
{{- else }}
serviceAccount.create is false and serviceAccount.name names none, so that the right to rotate keys would go to every Pod of the namespace; set serviceAccount.name
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Fault of a schedule, roughly. Takes field (its path) and value; empty is none. */}}
{{- define "vpn-gateway.scheduleFault" -}}
{{- $unit := "([*?]|([0-9]{1,2}|[A-Za-z]{3})(-([0-9]{1,2}|[A-Za-z]{3}))?)(/[0-9]{1,2})?" -}}
{{- $field := printf "%s(,%s)*" $unit $unit -}}
{{- $name := "@(yearly|annually|monthly|weekly|daily|midnight|hourly)" -}}
{{- if and .value (not (regexMatch (printf "^(%s|@every [0-9hms]+|%s( +%s){4})$" $name $field $field) .value)) -}}
{{- printf "%s %q is no schedule; write minute, hour, day of the month, month and day of the week, such as \"0 3 1 * *\"" .field .value -}}
{{- end -}}
{{- end -}}

{{/* Faults of keyRotation by itself, and of the second port, which the agent always knows. */}}
{{- define "vpn-gateway.rotationFaults" -}}
{{- $rotation := .Values.keyRotation -}}
{{- $server := .Values.server -}}
{{- $green := include "vpn-gateway.greenListenPort" . | int -}}
{{- if eq $green (int $server.listenPort) }}
keyRotation.server.listenPort {{ $green }} is server.listenPort too, and both keys are answered at once; give it a port of its own, such as {{ include "vpn-gateway.nextPort" (dict "given" nil "port" $server.listenPort) }}
{{- end -}}
{{- $public := include "vpn-gateway.publicPort" . | int -}}
{{- if eq (include "vpn-gateway.greenPublicPort" . | int) $public }}
keyRotation.server.publicPort {{ $public }} is the port of server.publicEndpoint too, and both keys are answered at once; give it a port of its own, such as {{ include "vpn-gateway.nextPort" (dict "given" nil "port" $public) }}
{{- end -}}
{{- if $rotation.enabled -}}
{{- if gt (len $server.interface) 14 }}
server.interface {{ $server.interface | quote }} leaves no room: while two keys are answered there is a second interface, with a "g" at its end, and 15 characters are the most; use 14 or fewer
{{- end -}}
{{- range $kind := list "server" "presharedKeys" -}}
{{- with include "vpn-gateway.scheduleFault" (dict "field" (printf "keyRotation.%s.schedule" $kind) "value" (get $rotation $kind).schedule) }}
{{ . }}
{{- end -}}
{{- end -}}
{{- $lead := include "vpn-gateway.seconds" $rotation.lead | int -}}
{{- if not $lead }}
keyRotation.lead {{ $rotation.lead | quote }} gives a new key no time to reach the gateway; set it to 10m
{{- end -}}
{{- if gt $lead (include "vpn-gateway.seconds" $rotation.server.overlap | int) }}
keyRotation.lead {{ $rotation.lead | quote }} is longer than keyRotation.server.overlap {{ $rotation.server.overlap | quote }}, in which clients have to move; lower the one or raise the other
{{- end -}}
{{- if and $rotation.presharedKeys.schedule (eq (include "vpn-gateway.mountedSecrets" (dict "root" . "section" "presharedKeys")) "[]") }}
keyRotation.presharedKeys.schedule {{ $rotation.presharedKeys.schedule | quote }} rotates nothing, as there is no Secret of pre-shared keys; name one in presharedKeys.existingSecrets, or remove it
{{- end -}}
{{- $blueNode := int .Values.service.nodePort -}}
{{- $greenNode := int $rotation.server.nodePort -}}
{{- if and $blueNode (eq $blueNode $greenNode) }}
keyRotation.server.nodePort {{ $greenNode }} is service.nodePort too; give each a port of its own
{{- else if and (eq .Values.service.type "NodePort") (eq $blueNode $public) (ne $greenNode (include "vpn-gateway.greenPublicPort" . | int)) }}
keyRotation.server.nodePort {{ $greenNode }} is not what clients of the second key would dial, {{ include "vpn-gateway.greenPublicPort" . }}, as service.nodePort is what they dial now; set it to that
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Faults of what External Secrets fetches. */}}
{{- define "vpn-gateway.externalFaults" -}}
{{- $external := .Values.externalSecrets -}}
{{- if $external.enabled -}}
{{- $create := $external.secretStore.create -}}
{{- $providers := $external.secretStore.provider | default dict | keys | sortAlpha -}}
{{- if and $create $external.secretStoreRef.name }}
externalSecrets.secretStoreRef.name {{ $external.secretStoreRef.name | quote }} names a store beside the one of externalSecrets.secretStore.create; keep one
{{- else if not (or $create $external.secretStoreRef.name) }}
externalSecrets.enabled is true and there is no store to ask; name one in externalSecrets.secretStoreRef.name, or set externalSecrets.secretStore.create and provider
{{- end -}}
{{- if and $create (ne (len $providers) 1) }}
externalSecrets.secretStore.provider has {{ len $providers }} providers{{ with $providers }}, {{ join " and " . }},{{ end }} and a store has one; give one, such as `vault`
{{- end -}}
{{- $items := include "vpn-gateway.externalItems" . | fromJsonArray -}}
{{- if not $items }}
externalSecrets.enabled is true and nothing is fetched; set externalSecrets.privateKey.enabled, or fill externalSecrets.presharedKeys or externalSecrets.peers
{{- end -}}
{{- range $item := $items -}}
{{- $path := printf "externalSecrets.%s" $item.field -}}
{{- $ways := eq $item.field "privateKey" | ternary (list "remoteKey" "dataFrom") (list "remoteKey" "find" "dataFrom") -}}
{{- $given := list -}}
{{- range $ways -}}
{{- if get $item . -}}
{{- $given = append $given . -}}
{{- end -}}
{{- end -}}
{{- if ne (len $given) 1 }}
{{ $path }} {{ $item.name | quote }} has {{ $given | join " and " | default "no place to come from" }}; give one of {{ join ", " $ways }}
{{- end -}}
{{- if and $item.dataFrom (or $item.property $item.rewrite) }}
{{ $path }} {{ $item.name | quote }} has dataFrom, and {{ empty $item.property | ternary "rewrite" "property" }} beside it; write it into dataFrom
{{- end -}}
{{- end -}}
{{- if and .Values.server.privateKey.existingSecret (include "vpn-gateway.fetchesKey" .) }}
server.privateKey.existingSecret {{ .Values.server.privateKey.existingSecret | quote }} and externalSecrets.privateKey.enabled are two sources of one key; keep one
{{- end -}}
{{- if and (eq $external.deletionPolicy "Delete") (eq $external.creationPolicy "Merge") }}
externalSecrets.deletionPolicy "Delete" is not for Secrets that External Secrets has not made (creationPolicy "Merge"); set it to Retain
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Faults of the way back: of keys that are made here and belong into a backend. */}}
{{- define "vpn-gateway.pushFaults" -}}
{{- $external := .Values.externalSecrets -}}
{{- $push := $external.pushSecret -}}
{{- if $external.enabled -}}
{{- $items := include "vpn-gateway.externalItems" . | fromJsonArray -}}
{{- $fetched := dict -}}
{{- $pushed := false -}}
{{- range $item := $items -}}
{{- $_ := set $fetched $item.name $item.field -}}
{{- if $item.source -}}
{{- $pushed = true -}}
{{- if or (not $item.remoteKey) $item.property $item.rewrite }}
externalSecrets.{{ $item.field }} {{ $item.name | quote }} is pushed to the backend, and has to come back as it went; give it remoteKey, without property and rewrite
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $push.enabled (not $pushed) }}
externalSecrets.pushSecret.enabled is true and there is nothing to push; set externalSecrets.privateKey.enabled, or externalSecrets.pushSecret.enabled to false
{{- end -}}
{{- $lead := include "vpn-gateway.seconds" .Values.keyRotation.lead | int -}}
{{- $way := add (include "vpn-gateway.seconds" $push.refreshInterval) (include "vpn-gateway.seconds" $external.refreshInterval) | int -}}
{{- $late := false -}}
{{- $stale := false -}}
{{- range include "vpn-gateway.rotations" . | fromJsonArray -}}
{{- if and (hasKey $fetched .secret) (not .source) }}
keyRotation would write to the Secret {{ .secret | quote }}, which External Secrets makes (externalSecrets.{{ get $fetched .secret }}) and would write back; set externalSecrets.pushSecret.enabled, so that the new key goes by the backend, or keyRotation.{{ eq .kind "server" | ternary "server" "presharedKeys" }}.schedule to ""
{{- end -}}
{{- if .source -}}
{{- $late = le $lead $way -}}
{{- $stale = or (ne $external.refreshPolicy "Periodic") (not (include "vpn-gateway.seconds" $external.refreshInterval | int)) (not (include "vpn-gateway.seconds" $push.refreshInterval | int)) -}}
{{- end -}}
{{- end -}}
{{- if $stale }}
keyRotation with externalSecrets needs refreshPolicy Periodic, and both refreshInterval and pushSecret.refreshInterval above 0s, or a new key never arrives; leave them out
{{- end -}}
{{- if $late }}
keyRotation.lead {{ .Values.keyRotation.lead | quote }} is not longer than externalSecrets.pushSecret.refreshInterval {{ $push.refreshInterval | quote }} and externalSecrets.refreshInterval {{ $external.refreshInterval | quote }} together, a new key's way by the backend; set it to 30m
{{- end -}}
{{- end -}}
{{- end -}}
