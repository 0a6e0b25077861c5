# shellcheck shell=bash
# Keys, certificates and kubeconfigs of one control plane, made with openssl into $AO_PKI and $AO_KUBE.

PKI_DAYS=3650

pki_ca() {
  [[ -s $AO_PKI/ca.crt ]] && return 0
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days "$PKI_DAYS" \
    -subj /CN=agent-operator-local -keyout "$AO_PKI/ca.key" -out "$AO_PKI/ca.crt.new" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
  mv "$AO_PKI/ca.crt.new" "$AO_PKI/ca.crt"
}

# pki_cert FILE SUBJECT [SUBJECT-ALTERNATIVE-NAMES]
pki_cert() {
  local file=$AO_PKI/$1
  [[ -s $file.crt ]] && return 0
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "$2" \
    -keyout "$file.key" -out "$file.csr" 2>/dev/null
  openssl x509 -req -in "$file.csr" -CA "$AO_PKI/ca.crt" -CAkey "$AO_PKI/ca.key" -days "$PKI_DAYS" \
    -set_serial "0x$(openssl rand -hex 12)" -out "$file.crt.new" 2>/dev/null -extfile <(
      echo 'keyUsage=critical,digitalSignature'
      echo 'extendedKeyUsage=serverAuth,clientAuth'
      [[ -z ${3:-} ]] || echo "subjectAltName=$3"
    )
  mv "$file.crt.new" "$file.crt"
  rm -f "$file.csr"
}

# pki_kubeconfig NAME SERVER: a self-contained file for the client certificate NAME.
pki_kubeconfig() {
  write_file "$AO_KUBE/$1.yaml" <<YAML
apiVersion: v1
kind: Config
current-context: local
contexts: [{name: local, context: {cluster: local, user: $1}}]
clusters:
  - name: local
    cluster:
      server: $2
      certificate-authority-data: $(base64 -w0 <"$AO_PKI/ca.crt")
users:
  - name: $1
    user:
      client-certificate-data: $(base64 -w0 <"$AO_PKI/$1.crt")
      client-key-data: $(base64 -w0 <"$AO_PKI/$1.key")
YAML
  chmod 600 "$AO_KUBE/$1.yaml"
}

# pki_control_plane ADDRESS...: the first address is the one that clients use.
pki_control_plane() {
  local address names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc
  names+=,DNS:kubernetes.default.svc.cluster.local,IP:$AO_SERVICE_IP
  for address in "$@"; do names+=,IP:$address; done
  mkdir -p "$AO_PKI" "$AO_KUBE"
  chmod 700 "$AO_PKI" "$AO_KUBE"
  pki_ca
  [[ -s $AO_PKI/sa.key ]] || openssl ecparam -name prime256v1 -genkey -noout -out "$AO_PKI/sa.key"
  [[ -s $AO_PKI/sa.pub ]] || openssl ec -in "$AO_PKI/sa.key" -pubout -out "$AO_PKI/sa.pub" 2>/dev/null
  pki_cert apiserver /CN=kube-apiserver "$names"
  pki_cert apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
  pki_cert admin /O=system:masters/CN=admin
}

# The other identities of a whole cluster.
pki_cluster() {
  local node server=$1
  pki_cert controller-manager /CN=system:kube-controller-manager
  pki_cert scheduler /CN=system:kube-scheduler
  pki_cert proxy /CN=system:kube-proxy
  pki_cert dns /CN=system:coredns
  for node in "${AO_NODE_IDS[@]}"; do
    pki_cert "node-$node" "/O=system:nodes/CN=system:node:node-$node" "DNS:node-$node,IP:$(node_ip "$node")"
    pki_kubeconfig "node-$node" "$server"
  done
  for name in admin controller-manager scheduler proxy dns; do pki_kubeconfig "$name" "$server"; done
}
