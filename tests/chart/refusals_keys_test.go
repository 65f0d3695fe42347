package chart

// keyRefusals are those of keys: the Secrets, rotation and External Secrets.
var keyRefusals = []refusal{
	{"Secret named twice", "{server: {privateKey: {existingSecret: a}}, presharedKeys: {existingSecrets: [b, b]}, peersFrom: {existingSecrets: [b, a]}}", []string{
		`presharedKeys.existingSecrets[1] "b" is named by presharedKeys.existingSecrets[0] too; name each Secret once`,
		`peersFrom.existingSecrets[0] "b" is named by presharedKeys.existingSecrets[0] too; name each Secret once`,
		`peersFrom.existingSecrets[1] "a" is named by server.privateKey.existingSecret too; name each Secret once`,
	}},
	{"key for the default ServiceAccount", "{serviceAccount: {create: false}, fleet: {readinessGate: {enabled: false}}}", []string{
		"serviceAccount.create is false and serviceAccount.name names none, so that the right to read the gateway's key would go to every Pod of the namespace; set serviceAccount.name, or server.privateKey.existingSecret",
	}},

	{"one port for two keys", "{server: {publicEndpoint: 'vpn.example.com:443', listenPort: 4500}, keyRotation: {server: {listenPort: 4500, publicPort: 443}}}", []string{
		"keyRotation.server.listenPort 4500 is server.listenPort too, and both keys are answered at once; give it a port of its own, such as 4501",
		"keyRotation.server.publicPort 443 is the port of server.publicEndpoint too, and both keys are answered at once; give it a port of its own, such as 444",
	}},
	{"no room for a second interface", "{server: {interface: wireguard-north}, keyRotation: {enabled: true}}", []string{
		`server.interface "wireguard-north" leaves no room: while two keys are answered there is a second interface, with a "g" at its end, and 15 characters are the most; use 14 or fewer`,
	}},
	{"no time to arrive", "keyRotation: {enabled: true, lead: 0s}", []string{
		`keyRotation.lead "0s" gives a new key no time to reach the gateway; set it to 10m`,
	}},
	{"lead and overlap swapped", "keyRotation: {enabled: true, lead: 168h, server: {overlap: 10m}}", []string{
		`keyRotation.lead "168h" is longer than keyRotation.server.overlap "10m", in which clients have to move; lower the one or raise the other`,
	}},
	{"schedules", "{presharedKeys: {existingSecrets: [psk]}, keyRotation: {enabled: true, server: {schedule: 0 3 1 *}, presharedKeys: {schedule: monthly}}}", []string{
		`keyRotation.server.schedule "0 3 1 *" is no schedule; write minute, hour, day of the month, month and day of the week, such as "0 3 1 * *"`,
		`keyRotation.presharedKeys.schedule "monthly" is no schedule; write minute, hour, day of the month, month and day of the week, such as "0 3 1 * *"`,
	}},
	{"pre-shared keys that are not there", "keyRotation: {enabled: true, presharedKeys: {schedule: '@monthly'}}", []string{
		`keyRotation.presharedKeys.schedule "@monthly" rotates nothing, as there is no Secret of pre-shared keys; name one in presharedKeys.existingSecrets, or remove it`,
	}},
	{"one node port for two keys", "{service: {nodePort: 31820}, keyRotation: {enabled: true, server: {nodePort: 31820}}}", []string{
		"keyRotation.server.nodePort 31820 is service.nodePort too; give each a port of its own",
	}},
	{"node port that nobody dials", "{server: {publicEndpoint: '192.0.2.7:31820'}, service: {type: NodePort, nodePort: 31820}, keyRotation: {enabled: true}}", []string{
		"keyRotation.server.nodePort 0 is not what clients of the second key would dial, 31821, as service.nodePort is what they dial now; set it to that",
	}},
	{"node port of a ClusterIP, of the second key", "{service: {type: ClusterIP}, keyRotation: {enabled: true, server: {nodePort: 31820}}}", []string{
		"keyRotation.server.nodePort 31820 is not for type ClusterIP; set service.type=NodePort or remove it",
	}},
	{"labels that select, of the rotation's Pods", "keyRotation: {podLabels: {app.kubernetes.io/name: x}}", []string{
		"keyRotation.podLabels has app.kubernetes.io/name, by which the gateway's Pods are selected; remove it (nameOverride changes the name)",
	}},
	{"rotation by the default ServiceAccount", "{serviceAccount: {create: false}, server: {privateKey: {existingSecret: mine}}, keyRotation: {enabled: true}, fleet: {enabled: false}}", []string{
		"serviceAccount.create is false and serviceAccount.name names none, so that the right to rotate keys would go to every Pod of the namespace; set serviceAccount.name",
	}},
	{"gateway with the Jobs' rights", "{serviceAccount: {create: false, name: mine}, externalSecrets: {enabled: true, secretStoreRef: {name: vault}, peers: [{name: p, remoteKey: a}]}}", []string{
		"serviceAccount.create is false, so that the gateway and the Jobs are one ServiceAccount, and with externalSecrets.enabled the gateway has its token, by which it could write Secrets; set serviceAccount.create to true",
	}},
	{"misspelt in keyRotation", "keyRotation: {server: {listenport: 1}}", []string{"at '/keyRotation/server': additional properties 'listenport' not allowed"}},
	{"lead in days", "keyRotation: {lead: 1d}", []string{`at '/keyRotation/lead': '1d' does not match pattern '^(?:(?:0|[1-9][0-9]*)h)?(?:(?:0|[1-9][0-9]*)m)?(?:(?:0|[1-9][0-9]*)s)?$'`}},

	{"nothing to fetch, nowhere to ask", "externalSecrets: {enabled: true}", []string{
		"externalSecrets.enabled is true and there is no store to ask; name one in externalSecrets.secretStoreRef.name, or set externalSecrets.secretStore.create and provider",
		"externalSecrets.enabled is true and nothing is fetched; set externalSecrets.privateKey.enabled, or fill externalSecrets.presharedKeys or externalSecrets.peers",
	}},
	{"two stores, one of them nowhere", "externalSecrets: {enabled: true, secretStoreRef: {name: vault}, secretStore: {create: true}, privateKey: {enabled: true, remoteKey: vpn}}", []string{
		`externalSecrets.secretStoreRef.name "vault" names a store beside the one of externalSecrets.secretStore.create; keep one`,
		"externalSecrets.secretStore.provider has 0 providers and a store has one; give one, such as `vault`",
	}},
	{"two providers", "externalSecrets: {enabled: true, secretStore: {create: true, provider: {vault: {}, aws: {}}}, privateKey: {enabled: true, remoteKey: vpn}}", []string{
		"externalSecrets.secretStore.provider has 2 providers, aws and vault, and a store has one; give one, such as `vault`",
	}},
	{"entries from nowhere and from two places", "externalSecrets: {enabled: true, secretStoreRef: {name: vault}, privateKey: {enabled: true}, presharedKeys: [{name: psk, remoteKey: a, find: {name: {regexp: .}}}], peers: [{name: peers, dataFrom: [{extract: {key: a}}], rewrite: [{regexp: {source: a, target: b}}]}]}", []string{
		`externalSecrets.privateKey "vpn-gateway-key-external" has no place to come from; give one of remoteKey, dataFrom`,
		`externalSecrets.presharedKeys[0] "psk" has remoteKey and find; give one of remoteKey, find, dataFrom`,
		`externalSecrets.peers[0] "peers" has dataFrom, and rewrite beside it; write it into dataFrom`,
	}},
	{"two sources of the key", "{server: {privateKey: {existingSecret: mine}}, externalSecrets: {enabled: true, secretStoreRef: {name: vault}, privateKey: {enabled: true, remoteKey: vpn}}}", []string{
		`externalSecrets.privateKey makes the Secret "mine", which is named by server.privateKey.existingSecret too; take each Secret from one place`,
		`server.privateKey.existingSecret "mine" and externalSecrets.privateKey.enabled are two sources of one key; keep one`,
	}},
	{"two sources of a Secret", "{presharedKeys: {existingSecrets: [psk]}, externalSecrets: {enabled: true, secretStoreRef: {name: vault}, presharedKeys: [{name: psk, remoteKey: a}], peers: [{name: p, remoteKey: a}, {name: p, remoteKey: b}]}}", []string{
		`externalSecrets.presharedKeys[0] makes the Secret "psk", which is named by presharedKeys.existingSecrets[0] too; take each Secret from one place`,
		`externalSecrets.peers[1] makes the Secret "p", which is named by externalSecrets.peers[0] too; take each Secret from one place`,
	}},
	{"Secrets of others that would be deleted", "externalSecrets: {enabled: true, creationPolicy: Merge, deletionPolicy: Delete, secretStoreRef: {name: vault}, peers: [{name: p, remoteKey: a}]}", []string{
		`externalSecrets.deletionPolicy "Delete" is not for Secrets that External Secrets has not made (creationPolicy "Merge"); set it to Retain`,
	}},
	{"rotation against External Secrets", "{keyRotation: {enabled: true, presharedKeys: {schedule: '@monthly'}}, externalSecrets: {enabled: true, secretStoreRef: {name: vault}, privateKey: {enabled: true, remoteKey: a}, presharedKeys: [{name: psk, remoteKey: b}]}}", []string{
		`keyRotation would write to the Secret "vpn-gateway-key-external", which External Secrets makes (externalSecrets.privateKey) and would write back; set externalSecrets.pushSecret.enabled, so that the new key goes by the backend, or keyRotation.server.schedule to ""`,
		`keyRotation would write to the Secret "psk", which External Secrets makes (externalSecrets.presharedKeys[0]) and would write back; set externalSecrets.pushSecret.enabled, so that the new key goes by the backend, or keyRotation.presharedKeys.schedule to ""`,
	}},
	{"nothing to push", "externalSecrets: {enabled: true, secretStoreRef: {name: vault}, peers: [{name: p, remoteKey: a}], pushSecret: {enabled: true}}", []string{
		"externalSecrets.pushSecret.enabled is true and there is nothing to push; set externalSecrets.privateKey.enabled, or externalSecrets.pushSecret.enabled to false",
	}},
	{"nowhere to push to", "{keyRotation: {enabled: true, presharedKeys: {schedule: '@monthly'}}, externalSecrets: {enabled: true, secretStoreRef: {name: vault}, privateKey: {enabled: true, remoteKey: a, property: key}, presharedKeys: [{name: psk, find: {name: {regexp: .}}}], pushSecret: {enabled: true}}}", []string{
		`externalSecrets.privateKey "vpn-gateway-key-external" is pushed to the backend, and has to come back as it went; give it remoteKey, without property and rewrite`,
		`externalSecrets.presharedKeys[0] "psk" is pushed to the backend, and has to come back as it went; give it remoteKey, without property and rewrite`,
	}},
	{"a new key that never arrives, or too late", "{keyRotation: {enabled: true, lead: 2m}, externalSecrets: {enabled: true, refreshPolicy: CreatedOnce, secretStoreRef: {name: vault}, privateKey: {enabled: true, remoteKey: a}, pushSecret: {enabled: true}}}", []string{
		"keyRotation with externalSecrets needs refreshPolicy Periodic, and both refreshInterval and pushSecret.refreshInterval above 0s, or a new key never arrives; leave them out",
		`keyRotation.lead "2m" is not longer than externalSecrets.pushSecret.refreshInterval "1m" and externalSecrets.refreshInterval "1m" together, a new key's way by the backend; set it to 30m`,
	}},
	{"misspelt in externalSecrets", "externalSecrets: {peers: [{name: p, remotekey: a}]}", []string{"at '/externalSecrets/peers/0': additional properties 'remotekey' not allowed"}},
	{"key in a property of many", "externalSecrets: {pushSecret: {property: keys.json}}", []string{"at '/externalSecrets/pushSecret/property': 'keys.json' does not match pattern '^[-_a-zA-Z0-9]*$'"}},
	{"no Secret at all", "externalSecrets: {creationPolicy: None}", []string{"at '/externalSecrets/creationPolicy': value must be one of 'Owner', 'Orphan', 'Merge'"}},
}
