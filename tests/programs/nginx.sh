#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# nginx over the files of $1: 8080 HTTP/1.1, 8081 HTTP/2 without TLS, 8443 TLS of its own, for one.example, two.example,
# and named.example, which wants a client's certificate.
set -eu
cd "$1"
for name in one.example two.example named.example client; do
    [ -e "$name.pem" ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$name" \
        -addext "subjectAltName=DNS:$name" -keyout "$name.key" -out "$name.pem" 2> /dev/null
done
yes underground | head -n 1000 > index.html
head -c 20M /dev/zero | openssl enc -aes-128-ctr -K 03 -iv 00 > large 2> /dev/null
tls() { echo "listen 8443 ssl http2; server_name $1; ssl_certificate $dir/$1.pem; ssl_certificate_key $dir/$1.key;"; }
dir=$1
cat > nginx.conf <<CONF
daemon off; user root; pid $1/pid; error_log stderr;
worker_processes 1;
events { worker_connections 4096; }
http {
    access_log /dev/stdout;
    keepalive_requests 100000;
    client_body_temp_path $1/body; proxy_temp_path $1/proxy; fastcgi_temp_path $1/fastcgi;
    uwsgi_temp_path $1/uwsgi; scgi_temp_path $1/scgi;
    root $1;
    ssl_protocols TLSv1.2 TLSv1.3;
    server { listen 8080; }
    server { listen 8081 http2; }
    server { $(tls one.example) }
    server { $(tls two.example) }
    server { $(tls named.example) ssl_client_certificate $1/client.pem; ssl_verify_client on;
        location / { return 200 "\$ssl_client_s_dn \$remote_addr\n"; } }
}
CONF
exec nginx -c "$1/nginx.conf"
