//! Host side of receiptdisk: one image, several guests, one order.
