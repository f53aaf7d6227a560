// presets/schema.json says the same as the table that a run is read by: fields, types, ranges,
// defaults, names.
#include <cJSON.h>
#include <fstream>
#include <sstream>

#include "pipelines/preset.h"
#include "support/catch.h"
#include "support/fixture.h"

namespace
{
struct Schema {
    Schema()
    {
        std::ifstream in(source_path("presets/schema.json"));
        std::stringstream text;
        text << in.rdbuf();
        root = cJSON_Parse(text.str().c_str());
    }
    ~Schema()
    {
        cJSON_Delete(root);
    }
    cJSON *root;
};

const char *type_name(const hd_param &row)
{
    switch (row.type) {
    case HD_PARAM_TYPE_FLOAT:
        return "number";
    case HD_PARAM_TYPE_INT:
    case HD_PARAM_TYPE_U64:
        return "integer";
    case HD_PARAM_TYPE_BOOL:
        return "boolean";
    case HD_PARAM_TYPE_STRING:
        return "string";
    default:
        return nullptr; // a list of names has no type
    }
}

double number(const cJSON *property, const char *key)
{
    const cJSON *item = cJSON_GetObjectItem(property, key);
    INFO(key);
    REQUIRE(cJSON_IsNumber(item));
    return item->valuedouble;
}

void check_names(const cJSON *property, const hd_param &row)
{
    const cJSON *names = cJSON_GetObjectItem(property, "enum");
    int count = 0;
    for (; row.names[count]; count++) {
        const cJSON *name = cJSON_GetArrayItem(names, count);
        REQUIRE(cJSON_IsString(name));
        CHECK(std::string(name->valuestring) == row.names[count]);
    }
    CHECK(cJSON_GetArraySize(names) == count);
}

void check_default(const cJSON *property, const hd_param &row)
{
    const cJSON *def = cJSON_GetObjectItem(property, "default");
    if (row.def_text) {
        REQUIRE(cJSON_IsString(def));
        CHECK(std::string(def->valuestring) == row.def_text);
    } else if (row.type == HD_PARAM_TYPE_BOOL) {
        CHECK(cJSON_IsTrue(def) == (row.def != 0));
    } else if (row.type == HD_PARAM_TYPE_INT || row.type == HD_PARAM_TYPE_FLOAT) {
        CHECK(number(property, "default") == row.def);
    } else {
        CHECK(def == nullptr);
    }
}
} // namespace

TEST_CASE("preset: the schema has the fields of the table, and no others", "[pipelines]")
{
    Schema schema;
    REQUIRE(schema.root);
    cJSON *properties = cJSON_GetObjectItem(schema.root, "properties");
    int rows = 0;
    for (const hd_param *row = hd_preset_params; row->type != HD_PARAM_TYPE_END; row++, rows++) {
        INFO(row->name);
        cJSON *property = cJSON_GetObjectItem(properties, row->name);
        REQUIRE(property);
        const cJSON *type = cJSON_GetObjectItem(property, "type");
        if (type_name(*row))
            CHECK(std::string(type->valuestring) == type_name(*row));
        else
            check_names(property, *row);
        if (row->min != row->max) {
            CHECK(number(property, "minimum") == row->min);
            CHECK(number(property, "maximum") == row->max);
        }
        check_default(property, *row);
        CHECK(cJSON_GetObjectItem(property, "description"));
    }
    CHECK(cJSON_GetArraySize(properties) ==
          rows + 5); // processors, branches, inversion, embeddings and $schema are read elsewhere
    CHECK(cJSON_IsFalse(cJSON_GetObjectItem(schema.root, "additionalProperties")));
}
