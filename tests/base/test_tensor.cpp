// Views: sizes, slices, and the words of a mismatch.
#include "base/tensor.h"
#include "support/catch.h"

TEST_CASE("tensor: a slice keeps its strides and moves its data", "[base]")
{
    float data[24];
    hd_tensor t = hd_tensor_of(data, HD_F32, hd_shape3(2, 3, 4));
    hd_tensor s = hd_tensor_slice(t, 1, 1, 2);
    CHECK(s.data == data + 4);
    CHECK(s.dim[1] == 2);
    CHECK(!hd_tensor_contiguous(s));
    CHECK(hd_tensor_contiguous(hd_tensor_slice(t, 0, 1, 1)));
    CHECK(hd_tensor_reshape(s, hd_shape1(16)).data == nullptr);
}

TEST_CASE("tensor: counts that do not fit 63 bits are refused", "[base]")
{
    CHECK(hd_shape_count(hd_shape3(INT64_MAX, 2, 1)) == -1);
    CHECK(hd_shape_count(hd_shape2(-1, 2)) == -1);
    CHECK(hd_tensor_bytes(hd_tensor_of(nullptr, HD_F32, hd_shape1(INT64_MAX / 2))) == -1);
}

TEST_CASE("tensor: a mismatch names both shapes", "[base]")
{
    float data[6];
    hd_tensor t = hd_tensor_of(data, HD_F32, hd_shape2(2, 3));
    CHECK_FAILS(hd_expect_shape("linear: x", t, HD_F32, hd_shape2(2, 4)), HD_ERR_SHAPE,
                "linear: x is [2, 3] f32, expected [2, 4] f32");
    t.data = nullptr;
    CHECK_FAILS(hd_expect_shape("linear: x", t, HD_F32, hd_shape2(2, 3)), HD_ERR_NOMEM,
                "arena is full");
}
