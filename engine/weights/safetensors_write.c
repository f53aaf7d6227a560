/* engine/weights/safetensors_write.c: header, padded to 8 bytes, then the tensors in the order
 * given. */
#include "engine/weights/safetensors_write.h"

#include <stdlib.h>
#include <string.h>

#include "base/output.h"
#include "engine/options/json_write.h"

static const char *dtype_code(hd_dtype dtype)
{
    static const char *const codes[HD_DTYPE_COUNT] = {
        [HD_F32] = "F32", [HD_BF16] = "BF16", [HD_F16] = "F16",  [HD_F64] = "F64", [HD_I8] = "I8",
        [HD_U8] = "U8",   [HD_I16] = "I16",   [HD_U16] = "U16",  [HD_I32] = "I32", [HD_U32] = "U32",
        [HD_I64] = "I64", [HD_U64] = "U64",   [HD_BOOL] = "BOOL"};
    return codes[dtype];
}

static hd_status check_tensors(const char *path, int64_t count, const hd_named_tensor *tensors)
{
    for (int64_t i = 0; i < count; i++) {
        const char *name = tensors[i].name;
        bool taken = strcmp(name, "__metadata__") == 0;
        for (int64_t j = 0; j < i && !taken; j++)
            taken = strcmp(name, tensors[j].name) == 0;
        if (taken) return hd_fail(HD_ERR_ARGUMENT, "%s: the name %s is taken", path, name);
        hd_tensor t = tensors[i].tensor;
        HD_ENSURE(hd_tensor_contiguous(t) && hd_tensor_bytes(t) >= 0);
    }
    return HD_OK;
}

static hd_status make_header(char **out, int64_t count, const hd_named_tensor *tensors,
                             const char *const *metadata)
{
    hd_json_writer w = {0};
    int64_t offset = 0;
    hd_json_write_object(&w, NULL);
    if (metadata && metadata[0]) {
        hd_json_write_object(&w, "__metadata__");
        for (; metadata[0]; metadata += 2)
            hd_json_write_string(&w, metadata[0], metadata[1]);
        hd_json_write_end(&w, '}');
    }
    for (int64_t i = 0; i < count; i++) {
        hd_tensor t = tensors[i].tensor;
        hd_json_write_object(&w, tensors[i].name);
        hd_json_write_string(&w, "dtype", dtype_code(t.dtype));
        hd_json_write_array(&w, "shape");
        for (int d = 0; d < t.rank; d++)
            hd_json_write_int(&w, NULL, t.dim[d]);
        hd_json_write_end(&w, ']');
        hd_json_write_array(&w, "data_offsets");
        hd_json_write_int(&w, NULL, offset);
        hd_json_write_int(&w, NULL, offset += hd_tensor_bytes(t));
        hd_json_write_end(&w, ']');
        hd_json_write_end(&w, '}');
    }
    hd_json_write_end(&w, '}');
    return hd_json_writer_take(&w, out);
}

static hd_status write_all(hd_output *o, const char *header, int64_t count,
                           const hd_named_tensor *tensors)
{
    static const char spaces[8] = "        ";
    unsigned char start[8];
    uint64_t used = strlen(header), length = (used + 7) / 8 * 8;
    for (int i = 0; i < 8; i++)
        start[i] = (unsigned char)(length >> (8 * i));
    HD_TRY(hd_output_write(o, start, sizeof start));
    HD_TRY(hd_output_write(o, header, used));
    HD_TRY(hd_output_write(o, spaces, length - used));
    for (int64_t i = 0; i < count; i++)
        HD_TRY(
            hd_output_write(o, tensors[i].tensor.data, (size_t)hd_tensor_bytes(tensors[i].tensor)));
    return HD_OK;
}

hd_status hd_safetensors_write(const char *path, int64_t count, const hd_named_tensor *tensors,
                               const char *const *metadata)
{
    char *header;
    hd_output *o = NULL;
    HD_TRY(check_tensors(path, count, tensors));
    HD_TRY(make_header(&header, count, tensors, metadata));
    hd_status status = hd_output_open(&o, path);
    if (status == HD_OK) status = write_all(o, header, count, tensors);
    free(header);
    if (status != HD_OK) {
        hd_output_discard(o);
        return status;
    }
    return hd_output_commit(o);
}
