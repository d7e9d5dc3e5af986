//! Segmentation and coalescing offloads: the virtio-net header, segmentation and coalescing of TCP and UDP.
