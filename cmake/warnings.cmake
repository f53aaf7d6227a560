# Warnings are errors, for our own code only.
add_library(heddle_warnings INTERFACE)
target_compile_options(heddle_warnings INTERFACE
    -Wall -Wextra -Wshadow -Wdouble-promotion -Wvla -Werror
    $<$<COMPILE_LANGUAGE:CXX>:-Wno-missing-field-initializers> # C++ has no other way to leave fields out
    $<$<C_COMPILER_ID:GNU>:-Wno-format-truncation> # snprintf cuts on purpose: messages and paths are bounded
    # clang warns of {NULL} as the end of a table, and of INFINITY where a double is wanted
    $<$<C_COMPILER_ID:Clang>:-Wno-missing-field-initializers -Wno-double-promotion>
    # GCC 12 with sanitizers sees phantoms inside std::function
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:GNU>>:-Wno-maybe-uninitialized>
    $<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes -Wmissing-prototypes>
    -ffp-contract=off -fno-math-errno) # a product and a sum stay two roundings unless the code says fma
if(HEDDLE_SANITIZE)
    add_compile_options(-fsanitize=${HEDDLE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
    add_link_options(-fsanitize=${HEDDLE_SANITIZE})
endif()
