"""The coordinators: etcd for clusters, a directory for one machine, memory for simulations."""
