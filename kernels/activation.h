/* kernels/activation.h: the functions that follow a norm, a matmul or a convolution. */
#ifndef HD_KERNELS_ACTIVATION_H
#define HD_KERNELS_ACTIVATION_H

typedef enum hd_activation {
    HD_ACT_NONE = 0,
    HD_ACT_SILU,
    HD_ACT_GELU, // exact: x Phi(x), with erf
    HD_ACT_GELU_TANH,
    HD_ACT_QUICK_GELU, // x sigmoid(1.702 x)
    HD_ACT_RELU,
} hd_activation;

/* Runs `call(constant)` with the constant that `act` equals, so that each one is a loop of its own.
 */
#define HD_FOR_ACTIVATION(act, call)                                                               \
    switch (act) {                                                                                 \
    case HD_ACT_SILU:                                                                              \
        call(HD_ACT_SILU);                                                                         \
        break;                                                                                     \
    case HD_ACT_GELU:                                                                              \
        call(HD_ACT_GELU);                                                                         \
        break;                                                                                     \
    case HD_ACT_GELU_TANH:                                                                         \
        call(HD_ACT_GELU_TANH);                                                                    \
        break;                                                                                     \
    case HD_ACT_QUICK_GELU:                                                                        \
        call(HD_ACT_QUICK_GELU);                                                                   \
        break;                                                                                     \
    case HD_ACT_RELU:                                                                              \
        call(HD_ACT_RELU);                                                                         \
        break;                                                                                     \
    case HD_ACT_NONE:                                                                              \
        call(HD_ACT_NONE);                                                                         \
        break;                                                                                     \
    }

#endif
