// Command frontend dials as kube-apiserver of the module's release does, and is driven by lines (see
// the package verbs).
//
//	frontend egress FILE              kube-apiserver's own dialler, "cluster" selection of FILE
//	frontend single SOCKET            a single-use tunnel of konnectivity-client for each dial
//	frontend single-tls HOST:PORT CA CERT KEY
//	                                  the same over TCP with mutual TLS
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apiserver/pkg/server/egressselector"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/pkg/client"

	"towline.test/verbs"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "egress":
		dial, err := egress(args[1])
		if err != nil {
			return err
		}
		return verbs.Serve(dial)
	case len(args) == 2 && args[0] == "single":
		socket := args[1]
		return verbs.Serve(single(socket, insecure.NewCredentials(), grpc.WithContextDialer(
			func(ctx context.Context, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			})))
	case len(args) == 5 && args[0] == "single-tls":
		config, err := clientTLS(args[2], args[3], args[4])
		if err != nil {
			return err
		}
		return verbs.Serve(single(args[1], credentials.NewTLS(config)))
	}
	return fmt.Errorf("usage: frontend egress FILE | single SOCKET | single-tls HOST:PORT CA CERT KEY")
}

func egress(file string) (verbs.Dial, error) {
	config, err := egressselector.ReadEgressSelectorConfiguration(file)
	if err != nil {
		return nil, err
	}
	if errs := egressselector.ValidateEgressSelectorConfiguration(config); len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	selector, err := egressselector.NewEgressSelector(config)
	if err != nil {
		return nil, err
	}
	dialer, err := selector.Lookup(egressselector.Cluster.AsNetworkContext())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, target string) (net.Conn, error) {
		return dialer(ctx, "tcp", target)
	}, nil
}

func single(address string, transport credentials.TransportCredentials, options ...grpc.DialOption) verbs.Dial {
	options = append(options, grpc.WithBlock(), grpc.WithReturnConnectionError(),
		grpc.WithTimeout(30*time.Second), grpc.WithTransportCredentials(transport))
	return func(ctx context.Context, target string) (net.Conn, error) {
		tunnel, err := client.CreateSingleUseGrpcTunnelWithContext(ctx, context.Background(), address, options...)
		if err != nil {
			return nil, err
		}
		return tunnel.DialContext(ctx, "tcp", target)
	}
}

func clientTLS(ca, cert, key string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate", ca)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}, nil
}
